// SPDX-License-Identifier: Apache-2.0
#include "tests/support/http_get.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>

#include "base/strings.h"

namespace nibble::testing {
namespace {

using SteadyClock = std::chrono::steady_clock;

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

sockaddr_in LoopbackAddress(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// Waits until `fd` is ready for `events`.
Status Await(int fd, short events, SteadyClock::time_point deadline, const std::string& what) {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - SteadyClock::now());
    if (left.count() <= 0) return DeadlineExceededError(what + ": no answer in time");
    pollfd entry{fd, events, 0};
    const int ready = poll(&entry, 1, static_cast<int>(left.count()));
    if (ready > 0) return OkStatus();
    if (ready < 0 && errno != EINTR) return ErrnoError(errno, what);
  }
}

Status Connect(int fd, int port, SteadyClock::time_point deadline, const std::string& what) {
  const sockaddr_in address = LoopbackAddress(port);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
    return OkStatus();
  }
  if (errno != EINPROGRESS) return UnavailableError(what + ": cannot connect");
  RETURN_IF_ERROR(Await(fd, POLLOUT, deadline, what));
  int error = 0;
  socklen_t size = sizeof(error);
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error != 0) return UnavailableError(what + ": nobody listens there");
  return OkStatus();
}

Status SendAll(int fd, std::string_view bytes, SteadyClock::time_point deadline,
               const std::string& what) {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent >= 0) {
      bytes.remove_prefix(static_cast<size_t>(sent));
    } else if (errno == EAGAIN || errno == EINTR) {
      RETURN_IF_ERROR(Await(fd, POLLOUT, deadline, what));
    } else {
      return ErrnoError(errno, what);
    }
  }
  return OkStatus();
}

Result<std::string> ReceiveToEnd(int fd, SteadyClock::time_point deadline,
                                 const std::string& what) {
  std::string bytes;
  char buffer[16384];
  while (true) {
    RETURN_IF_ERROR(Await(fd, POLLIN, deadline, what));
    const ssize_t got = recv(fd, buffer, sizeof(buffer), 0);
    if (got == 0) return bytes;
    if (got < 0) {
      if (errno == EAGAIN || errno == EINTR) continue;
      return ErrnoError(errno, what);
    }
    bytes.append(buffer, static_cast<size_t>(got));
    if (static_cast<int64_t>(bytes.size()) > kMaxHttpResponseBytes) {
      return ResourceExhaustedError(StrFormat("%s: the answer is longer than %lld bytes",
                                              what.c_str(),
                                              static_cast<long long>(kMaxHttpResponseBytes)));
    }
  }
}

Result<HttpResponse> ParseResponse(const std::string& bytes, const std::string& what) {
  const size_t header_end = bytes.find("\r\n\r\n");
  if (!bytes.starts_with("HTTP/1.") || bytes.size() < 12 || header_end == std::string::npos) {
    return DataLossError(what + ": the answer is not HTTP: '" + bytes.substr(0, 40) + "'");
  }
  HttpResponse response;
  ASSIGN_OR_RETURN(const int64_t code, ParseInt(std::string_view(bytes).substr(9, 3)));
  response.code = static_cast<int>(code);
  response.body = bytes.substr(header_end + 4);
  for (const std::string& line : StrSplit(std::string_view(bytes).substr(0, header_end), '\n')) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    std::string name = line.substr(0, colon);
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    const std::string value(StrTrim(std::string_view(line).substr(colon + 1)));
    if (name == "content-type") response.content_type = value;
    if (name == "content-length") {
      ASSIGN_OR_RETURN(const int64_t length, ParseInt(value));
      if (length != static_cast<int64_t>(response.body.size())) {
        return DataLossError(StrFormat("%s: %zu bytes came where Content-Length says %lld",
                                       what.c_str(), response.body.size(),
                                       static_cast<long long>(length)));
      }
    }
    if (name == "transfer-encoding") {
      return UnimplementedError(what + ": Transfer-Encoding in an answer to HTTP/1.0");
    }
  }
  return response;
}

}  // namespace

Result<HttpResponse> HttpGet(int port, std::string_view target, std::chrono::milliseconds timeout) {
  const std::string what = StrFormat("GET http://127.0.0.1:%d", port) + std::string(target);
  const auto deadline = SteadyClock::now() + timeout;
  const Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (socket.fd() < 0) return ErrnoError(errno, what);
  RETURN_IF_ERROR(Connect(socket.fd(), port, deadline, what));
  const std::string request =
      "GET " + std::string(target) + " HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
  RETURN_IF_ERROR(SendAll(socket.fd(), request, deadline, what));
  ASSIGN_OR_RETURN(const std::string bytes, ReceiveToEnd(socket.fd(), deadline, what));
  return ParseResponse(bytes, what);
}

std::string UrlEncode(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) || c == '-' || c == '.' || c == '_' || c == '~') {
      out += c;
    } else {
      out += StrFormat("%%%02X", byte);
    }
  }
  return out;
}

Result<int> FreeLoopbackPort() {
  const Socket socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (socket.fd() < 0) return ErrnoError(errno, "socket");
  sockaddr_in address = LoopbackAddress(0);
  socklen_t size = sizeof(address);
  if (bind(socket.fd(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return ErrnoError(errno, "bind 127.0.0.1:0");
  }
  return static_cast<int>(ntohs(address.sin_port));
}

}  // namespace nibble::testing
