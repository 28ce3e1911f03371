// SPDX-License-Identifier: Apache-2.0
#include "worker/agent/status_page.h"

#include <civetweb.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <string_view>
#include <thread>
#include <utility>

#include "base/mutex.h"

namespace nibble::agent {
namespace {

constexpr char kThreads[] = "2";
constexpr char kRequestTimeoutMs[] = "10000";
constexpr int kMaxPokes = 20;
constexpr std::chrono::milliseconds kPokeInterval{5};

// Every metric of the worker, as the reference page lists them.
class Metrics {
 public:
  explicit Metrics(const std::string& version)
      : running_(Gauge("nibble_worker_trainers_running", "Trainer processes supervised now.")),
        lag_(Gauge("nibble_worker_journal_lag_bytes",
                   "Journal bytes written and not yet acknowledged by the controller.")),
        spool_(
            Gauge("nibble_worker_spool_records", "Journal records sent and not yet acknowledged.")),
        connected_(Gauge("nibble_worker_controller_connected",
                         "1 while the session stream to the controller stands.")),
        disk_(Gauge("nibble_worker_disk_free_bytes",
                    "Free space where run directories and checkpoints lie.")),
        reconnects_(prometheus::BuildCounter()
                        .Name("nibble_worker_reconnects_total")
                        .Help("Sessions opened after the first one.")
                        .Register(registry_)
                        .Add({})),
        exits_(prometheus::BuildCounter()
                   .Name("nibble_worker_trainer_exits_total")
                   .Help("Trainers that ended: ok, error (another exit code), signal.")
                   .Register(registry_)),
        ok_(exits_.Add({{"result", "ok"}})),
        error_(exits_.Add({{"result", "error"}})),
        signal_(exits_.Add({{"result", "signal"}})) {
    prometheus::BuildGauge()
        .Name("nibble_build_info")
        .Help("Always 1.")
        .Register(registry_)
        .Add({{"component", "worker"}, {"version", version}, {"revision", NIBBLE_REVISION}})
        .Set(1);
  }

  std::string Render(const WorkerStats& stats) {
    running_.Set(stats.attempts.trainers_running);
    lag_.Set(static_cast<double>(stats.attempts.journal_lag_bytes));
    spool_.Set(static_cast<double>(stats.attempts.records_in_flight));
    connected_.Set(stats.connected ? 1 : 0);
    disk_.Set(static_cast<double>(stats.disk_free_bytes));
    RaiseTo(reconnects_, stats.reconnects);
    RaiseTo(ok_, stats.attempts.exits_ok);
    RaiseTo(error_, stats.attempts.exits_error);
    RaiseTo(signal_, stats.attempts.exits_signal);
    return prometheus::TextSerializer().Serialize(registry_.Collect());
  }

 private:
  prometheus::Gauge& Gauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry_).Add({});
  }
  static void RaiseTo(prometheus::Counter& counter, int64_t value) {
    const double by = static_cast<double>(value) - counter.Value();
    if (by > 0) counter.Increment(by);
  }

  prometheus::Registry registry_;
  prometheus::Gauge& running_;
  prometheus::Gauge& lag_;
  prometheus::Gauge& spool_;
  prometheus::Gauge& connected_;
  prometheus::Gauge& disk_;
  prometheus::Counter& reconnects_;
  prometheus::Family<prometheus::Counter>& exits_;
  prometheus::Counter& ok_;
  prometheus::Counter& error_;
  prometheus::Counter& signal_;
};

void Answer(mg_connection* connection, int code, const char* phrase, const char* type,
            const std::string& body) {
  mg_printf(connection,
            "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n",
            code, phrase, type, body.size());
  const char* method = mg_get_request_info(connection)->request_method;
  if (std::string_view(method) != "HEAD") mg_write(connection, body.data(), body.size());
}

}  // namespace

struct StatusPage::Impl {
  explicit Impl(const std::string& version) : metrics(version) {}

  static int OnRequest(mg_connection* connection) {
    const mg_request_info* request = mg_get_request_info(connection);
    auto* self = static_cast<Impl*>(request->user_data);
    const std::string_view method = request->request_method;
    const std::string_view path = request->local_uri != nullptr ? request->local_uri : "";
    if (method != "GET" && method != "HEAD") {
      Answer(connection, 405, "Method Not Allowed", "text/plain", "only GET and HEAD\n");
      return 405;
    }
    if (path == "/healthz") {
      Answer(connection, 200, "OK", "text/plain", "ok\n");
      return 200;
    }
    if (path == "/metrics") {
      MutexLock lock(self->mutex);
      Answer(connection, 200, "OK", "text/plain; version=0.0.4; charset=utf-8",
             self->metrics.Render(self->stats));
      return 200;
    }
    Answer(connection, 404, "Not Found", "text/plain",
           "no such page; this worker has: /metrics /healthz\n");
    return 404;
  }

  static int OnLog(const mg_connection*, const char*) { return 1; }  // nothing on stderr

  Mutex mutex;
  Metrics metrics GUARDED_BY(mutex);
  WorkerStats stats GUARDED_BY(mutex);
  mg_context* context = nullptr;
  std::string local_host;  // where this process reaches its own port
  int port = 0;
};

StatusPage::StatusPage() = default;

Result<std::unique_ptr<StatusPage>> StatusPage::Start(const std::string& address,
                                                      const std::string& version) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) {
    return InvalidArgumentError("--http '" + address + "' is not HOST:PORT, e.g. 127.0.0.1:0");
  }
  std::string host = address.substr(0, colon);
  if (host == "localhost") host = "127.0.0.1";
  std::unique_ptr<StatusPage> page(new StatusPage());
  page->impl_ = std::make_unique<Impl>(version);
  const std::string listen = (host.empty() ? "0.0.0.0" : host) + address.substr(colon);
  const char* options[] = {"listening_ports",    listen.c_str(),    "num_threads", kThreads,
                           "request_timeout_ms", kRequestTimeoutMs, nullptr};
  mg_callbacks callbacks{};
  callbacks.begin_request = &Impl::OnRequest;
  callbacks.log_message = &Impl::OnLog;
  page->impl_->context = mg_start(&callbacks, page->impl_.get(), options);
  if (page->impl_->context == nullptr) {
    return FailedPreconditionError("cannot serve HTTP on '" + address +
                                   "': the address is in use or not this machine's; choose "
                                   "another with --http HOST:PORT (port 0 = any free)");
  }
  mg_server_port bound[2] = {};
  const int ports = mg_get_server_ports(page->impl_->context, 2, bound);
  page->impl_->port = ports > 0 ? bound[0].port : 0;
  const bool wildcard = host.empty() || host == "0.0.0.0" || host == "[::]";
  page->impl_->local_host = wildcard ? "127.0.0.1" : host;
  page->address_ = (wildcard ? HostName() : host) + ":" + std::to_string(page->impl_->port);
  return page;
}

StatusPage::~StatusPage() {
  if (impl_ == nullptr || impl_->context == nullptr) return;
  // CivetWeb's accepting thread wakes every two seconds, or when somebody connects.
  std::atomic<bool> stopped = false;
  std::thread stopper([this, &stopped] {
    mg_stop(impl_->context);
    stopped = true;
  });
  for (int poke = 0; poke < kMaxPokes && !stopped; ++poke) {
    std::this_thread::sleep_for(kPokeInterval);
    char error[128] = "";
    mg_connection* connection =
        mg_connect_client(impl_->local_host.c_str(), impl_->port, 0, error, sizeof error);
    if (connection != nullptr) mg_close_connection(connection);
  }
  stopper.join();
}

void StatusPage::Update(const WorkerStats& stats) {
  MutexLock lock(impl_->mutex);
  impl_->stats = stats;
}

std::string HostName() {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : "localhost";
}

}  // namespace nibble::agent
