// SPDX-License-Identifier: Apache-2.0
//
// Status and Result<T>: how every fallible function of Nibble reports failure.
//
// Purpose: one error type for the whole tree, std only, because the trainer and the kernels build
// on machines without Abseil. The service maps it to gRPC in one file (server/rpc/errors.cc).
// Thread-safety: value types, thread-compatible. Ownership: they own their message.
// Messages name the thing, the value, the limit and the fix.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace nibble {

// The canonical codes used in Nibble; numbers equal google.rpc.Code so that mapping is a cast.
enum class StatusCode : int {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,     // wrong in any state
  kDeadlineExceeded = 4,    // the caller's time ran out
  kNotFound = 5,            // the named thing does not exist
  kAlreadyExists = 6,       // the name is taken by something else
  kPermissionDenied = 7,    // known caller, not allowed
  kResourceExhausted = 8,   // quota, queue, memory, disk
  kFailedPrecondition = 9,  // wrong now
  kAborted = 10,            // lease lost or stale epoch
  kOutOfRange = 11,         // past the end
  kUnimplemented = 12,      // the backend or build lacks it
  kInternal = 13,           // our bug
  kUnavailable = 14,        // retry with backoff
  kDataLoss = 15,           // checksum mismatch, torn file
  kUnauthenticated = 16,    // no or wrong credentials
};

// "INVALID_ARGUMENT" and so on; "CODE_<n>" for a number outside the enum.
std::string StatusCodeName(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;  // OK
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

  // "OK" or "NOT_FOUND: checkpoint /x does not exist".
  std::string ToString() const;

  // The same status with "context: " before its message; OK stays OK.
  Status WithContext(std::string_view context) const;

  friend bool operator==(const Status&, const Status&) = default;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status OkStatus() { return {}; }
Status InvalidArgumentError(std::string message);
Status DeadlineExceededError(std::string message);
Status NotFoundError(std::string message);
Status AlreadyExistsError(std::string message);
Status PermissionDeniedError(std::string message);
Status ResourceExhaustedError(std::string message);
Status FailedPreconditionError(std::string message);
Status AbortedError(std::string message);
Status OutOfRangeError(std::string message);
Status UnimplementedError(std::string message);
Status InternalError(std::string message);
Status UnavailableError(std::string message);
Status DataLossError(std::string message);
Status UnauthenticatedError(std::string message);
Status CancelledError(std::string message);

// Status for a failed system call: maps ENOENT, EACCES, ENOSPC, EEXIST ... and appends strerror.
Status ErrnoError(int error_number, std::string_view what);

namespace internal {
[[noreturn]] void DieOnBadResultAccess(const Status& status);
[[noreturn]] void DieOnFailedCheck(const char* file, int line, const char* expression);
}  // namespace internal

// A value or the reason why there is none. Never holds an OK status without a value.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : status_(std::move(status)) {  // NOLINT(google-explicit-constructor)
    if (status_.ok()) status_ = InternalError("Result built from an OK status without a value");
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }

  // Precondition: ok(). Ends the process otherwise.
  T& value() & { return Checked(); }
  const T& value() const& { return const_cast<Result*>(this)->Checked(); }
  T value() && { return std::move(Checked()); }  // by value: a loop over it may not dangle
  T& operator*() & { return Checked(); }
  const T& operator*() const& { return value(); }
  T operator*() && { return std::move(Checked()); }
  T* operator->() { return &Checked(); }
  const T* operator->() const { return &value(); }
  T value_or(T fallback) const { return ok() ? *value_ : std::move(fallback); }

 private:
  T& Checked() {
    if (!value_.has_value()) internal::DieOnBadResultAccess(status_);
    return *value_;
  }
  Status status_;
  std::optional<T> value_;
};

}  // namespace nibble

// Returns the status from the enclosing function when it is not OK.
#define RETURN_IF_ERROR(expression)                  \
  do {                                               \
    ::nibble::Status nibble_status_ = (expression);  \
    if (!nibble_status_.ok()) return nibble_status_; \
  } while (false)

#define NIBBLE_CONCAT_INNER_(a, b) a##b
#define NIBBLE_CONCAT_(a, b) NIBBLE_CONCAT_INNER_(a, b)

// ASSIGN_OR_RETURN(auto x, F()): x = value of F(), or returns F()'s status.
#define ASSIGN_OR_RETURN(lhs, expression) \
  ASSIGN_OR_RETURN_IMPL_(NIBBLE_CONCAT_(nibble_result_, __LINE__), lhs, expression)
#define ASSIGN_OR_RETURN_IMPL_(result, lhs, expression) \
  auto result = (expression);                           \
  if (!result.ok()) return result.status();             \
  lhs = std::move(result).value()

// For what no caller can cause; never for input from network, disk or flags.
#define NIBBLE_CHECK(expression)                                                              \
  do {                                                                                        \
    if (!(expression)) ::nibble::internal::DieOnFailedCheck(__FILE__, __LINE__, #expression); \
  } while (false)
