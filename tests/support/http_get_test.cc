// SPDX-License-Identifier: Apache-2.0
#include "tests/support/http_get.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>

namespace nibble::testing {
namespace {

// Accepts one connection, reads the request's head, answers with `bytes` and closes.
class OneAnswer {
 public:
  explicit OneAnswer(std::string bytes) : bytes_(std::move(bytes)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
    EXPECT_EQ(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Serve(); });
  }
  ~OneAnswer() {
    thread_.join();
    close(listener_);
  }
  int port() const { return port_; }
  std::string request() const { return request_; }  // valid after the answer was read

 private:
  void Serve() {
    const int fd = accept(listener_, nullptr, nullptr);
    char buffer[4096];
    while (request_.find("\r\n\r\n") == std::string::npos) {
      const ssize_t got = read(fd, buffer, sizeof(buffer));
      if (got <= 0) break;
      request_.append(buffer, static_cast<size_t>(got));
    }
    EXPECT_EQ(send(fd, bytes_.data(), bytes_.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes_.size()));
    close(fd);
  }

  std::string bytes_;
  std::string request_;
  int listener_ = -1;
  int port_ = 0;
  std::thread thread_;
};

TEST(HttpGet, AnswerIsSplitIntoCodeTypeAndBody) {
  OneAnswer server(
      "HTTP/1.0 404 Not Found\r\nContent-Type: text/plain\r\n\r\nno such page\r\n\r\n");
  const Result<HttpResponse> response = HttpGet(server.port(), "/nothing?a=b");
  ASSERT_TRUE(response.ok()) << response.status().ToString();
  EXPECT_EQ(response->code, 404);
  EXPECT_EQ(response->content_type, "text/plain");
  EXPECT_EQ(response->body, "no such page\r\n\r\n");
  EXPECT_TRUE(server.request().starts_with("GET /nothing?a=b HTTP/1.0\r\n")) << server.request();
}

TEST(HttpGet, BodyShorterThanContentLengthIsDataLoss) {
  OneAnswer server("HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_EQ(HttpGet(server.port(), "/").status().code(), StatusCode::kDataLoss);
}

TEST(HttpGet, AnswerThatIsNotHttpIsDataLoss) {
  OneAnswer server("hello");
  EXPECT_EQ(HttpGet(server.port(), "/").status().code(), StatusCode::kDataLoss);
}

TEST(HttpGet, NobodyListeningIsUnavailable) {
  const Result<int> port = FreeLoopbackPort();
  ASSERT_TRUE(port.ok());
  EXPECT_EQ(HttpGet(*port, "/").status().code(), StatusCode::kUnavailable);
}

TEST(UrlEncode, OnlyUnreservedCharactersStay) {
  EXPECT_EQ(UrlEncode("a{b=\"c\"}~1"), "a%7Bb%3D%22c%22%7D~1");
}

}  // namespace
}  // namespace nibble::testing
