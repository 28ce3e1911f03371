// SPDX-License-Identifier: Apache-2.0
#include "server/store/sqlite.h"

#include <sqlite3.h>

#include <utility>

namespace nibble::store {
namespace {
constexpr int kBusyTimeoutMs = 5'000;
}  // namespace

Sqlite::~Sqlite() {
  if (db_ != nullptr) sqlite3_close_v2(db_);
}

Sqlite::Sqlite(Sqlite&& other) noexcept
    : db_(std::exchange(other.db_, nullptr)), path_(std::move(other.path_)) {}

Sqlite& Sqlite::operator=(Sqlite&& other) noexcept {
  std::swap(db_, other.db_);
  std::swap(path_, other.path_);
  return *this;
}

Result<Sqlite> Sqlite::Open(const std::string& path, bool read_only) {
  Sqlite db;
  db.path_ = path;
  const int flags = read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
  const int code = sqlite3_open_v2(path.c_str(), &db.db_, flags | SQLITE_OPEN_NOMUTEX, nullptr);
  if (code != SQLITE_OK) return db.Error(code, "open");
  sqlite3_extended_result_codes(db.db_, 1);
  sqlite3_busy_timeout(db.db_, kBusyTimeoutMs);
  return db;
}

Status Sqlite::Error(int code, std::string_view what) const {
  const std::string message = std::string(what) + " " + path_ + ": " +
                              (db_ == nullptr ? sqlite3_errstr(code) : sqlite3_errmsg(db_)) +
                              " (SQLite code " + std::to_string(code) + ")";
  switch (code & 0xff) {
    case SQLITE_FULL:
      return ResourceExhaustedError(message + "; free space on the state directory's disk");
    case SQLITE_IOERR:  // a full disk often shows as a failed write of the WAL
      return code == SQLITE_IOERR_WRITE || code == SQLITE_IOERR_FSYNC
                 ? ResourceExhaustedError(message + "; is the disk full or failing?")
                 : InternalError(message);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return UnavailableError(message);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return DataLossError(message + "; restore the state directory from a backup");
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_AUTH:
      return FailedPreconditionError(message + "; check the owner and mode of the state directory");
    default:
      return InternalError(message);
  }
}

Status Sqlite::Run(const std::string& sql) {
  const int code = sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? OkStatus() : Error(code, "run");
}

Result<int64_t> Sqlite::QueryInt(const std::string& sql, int64_t fallback) {
  ASSIGN_OR_RETURN(Statement statement, Statement::Prepare(*this, sql));
  ASSIGN_OR_RETURN(const bool row, statement.Step());
  return row ? statement.Int(0) : fallback;
}

int64_t Sqlite::changed_rows() const { return sqlite3_changes64(db_); }

Statement::~Statement() { sqlite3_finalize(statement_); }

Statement::Statement(Statement&& other) noexcept
    : db_(other.db_),
      statement_(std::exchange(other.statement_, nullptr)),
      bind_error_(other.bind_error_) {}

Statement& Statement::operator=(Statement&& other) noexcept {
  std::swap(db_, other.db_);
  std::swap(statement_, other.statement_);
  std::swap(bind_error_, other.bind_error_);
  return *this;
}

Result<Statement> Statement::Prepare(Sqlite& db, const std::string& sql) {
  Statement statement;
  statement.db_ = &db;
  const int code = sqlite3_prepare_v3(db.handle(), sql.c_str(), static_cast<int>(sql.size()),
                                      SQLITE_PREPARE_PERSISTENT, &statement.statement_, nullptr);
  if (code != SQLITE_OK) return db.Error(code, "prepare");
  return statement;
}

Statement& Statement::Bind(int index, int64_t value) {
  const int code = sqlite3_bind_int64(statement_, index, value);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

Statement& Statement::Bind(int index, std::string_view text) {
  const int code = sqlite3_bind_text64(statement_, index, text.data(), text.size(),
                                       SQLITE_TRANSIENT, SQLITE_UTF8);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

Result<bool> Statement::Step() {
  if (bind_error_ != 0) return db_->Error(bind_error_, "bind");
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  const Status error = db_->Error(code, "step");
  Reset();
  return error;
}

Status Statement::Finish() {
  bool row = true;
  while (row) {
    ASSIGN_OR_RETURN(row, Step());
  }
  Reset();
  return OkStatus();
}

void Statement::Reset() {
  sqlite3_reset(statement_);
  bind_error_ = 0;
}

int64_t Statement::Int(int column) const { return sqlite3_column_int64(statement_, column); }

std::string Statement::Text(int column) const {
  const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
  const int size = sqlite3_column_bytes(statement_, column);
  return text == nullptr ? "" : std::string(text, static_cast<size_t>(size));
}

}  // namespace nibble::store
