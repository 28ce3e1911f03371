// SPDX-License-Identifier: Apache-2.0
#include "server/store/event_log.h"

#include <utility>

#include "base/files.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/strings.h"
#include "server/store/sqlite.h"

namespace nibble::store {
namespace {

constexpr int64_t kSchemaVersion = 1;
// SQLite's "application id" of our files, so that a foreign database is recognised: "NIBB".
constexpr int64_t kApplicationId = 0x4e494242;
constexpr int kReplayCommitEvery = 1024;
constexpr int kMaxHistory = 10'000;

constexpr char kSchema[] =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE events (sequence INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL,"
    "  job TEXT NOT NULL, worker TEXT NOT NULL, body TEXT NOT NULL) STRICT;"
    "CREATE INDEX events_by_job ON events (job, sequence) WHERE job <> '';"
    "CREATE INDEX events_by_worker ON events (worker, sequence) WHERE worker <> '';"
    "CREATE TABLE jobs (id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE TABLE workers (id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;"
    "PRAGMA application_id = 1313423938;"
    "PRAGMA user_version = 1;"
    "COMMIT;";
static_assert(kApplicationId == 1313423938);

Result<core::Event> ParseEvent(int64_t sequence, const std::string& body) {
  const Result<Json> json = Json::Parse(body);
  const std::string what = StrFormat("event %lld", static_cast<long long>(sequence));
  if (!json.ok()) return DataLossError(what + " is damaged: " + json.status().message());
  Result<core::Event> event = core::EventFromJson(*json);
  if (!event.ok()) return event.status().WithContext(what);
  event->sequence = sequence;
  return event;
}

// Opens a transaction and rolls it back unless committed.
class Transaction {
 public:
  static Result<Transaction> Begin(Sqlite& db) {
    RETURN_IF_ERROR(db.Run("BEGIN IMMEDIATE"));
    return Transaction(&db);
  }
  Transaction(Transaction&& other) noexcept : db_(std::exchange(other.db_, nullptr)) {}
  ~Transaction() {
    if (db_ == nullptr) return;
    // After some errors SQLite has rolled back by itself; then this fails and that is fine.
    if (const Status status = db_->Run("ROLLBACK"); !status.ok()) {
      LogDebug("rollback", {{"status", status.ToString()}});
    }
  }
  Status Commit() {
    RETURN_IF_ERROR(db_->Run("COMMIT"));
    db_ = nullptr;
    return OkStatus();
  }

 private:
  explicit Transaction(Sqlite* db) : db_(db) {}
  Sqlite* db_;
};

Status PrepareDatabase(Sqlite& db) {
  RETURN_IF_ERROR(db.Run("PRAGMA journal_mode = WAL"));
  RETURN_IF_ERROR(db.Run("PRAGMA synchronous = FULL"));
  ASSIGN_OR_RETURN(const int64_t version, db.QueryInt("PRAGMA user_version", 0));
  ASSIGN_OR_RETURN(const int64_t application, db.QueryInt("PRAGMA application_id", 0));
  ASSIGN_OR_RETURN(const int64_t tables, db.QueryInt("SELECT count(*) FROM sqlite_schema", 0));
  if (tables == 0 && version == 0) return db.Run(kSchema);
  if (application != kApplicationId) {
    return FailedPreconditionError(
        "control.db belongs to another program: choose another state directory");
  }
  if (version > kSchemaVersion) {
    return FailedPreconditionError(
        StrFormat("control.db has schema %lld, this build knows up to %lld: use a newer build",
                  static_cast<long long>(version), static_cast<long long>(kSchemaVersion)));
  }
  return OkStatus();
}

}  // namespace

struct SqliteEventLog::Impl {
  SqliteLogOptions options;
  FileLock lock;
  Sqlite db;
  Statement insert_event;
  int64_t last_sequence = 0;
  mutable Mutex reader_mutex;
  mutable Sqlite reader GUARDED_BY(reader_mutex);

  Status LoadRows(const char* sql, std::vector<std::pair<std::string, std::string>>& rows) {
    ASSIGN_OR_RETURN(Statement select, Statement::Prepare(db, sql));
    while (true) {
      ASSIGN_OR_RETURN(const bool row, select.Step());
      if (!row) return OkStatus();
      rows.emplace_back(select.Text(0), select.Text(1));
    }
  }

  Status SaveRows(const char* sql, const std::vector<std::pair<std::string, std::string>>& rows) {
    ASSIGN_OR_RETURN(Statement upsert, Statement::Prepare(db, sql));
    for (const auto& [id, body] : rows) {
      RETURN_IF_ERROR(upsert.Bind(1, id).Bind(2, body).Finish());
    }
    return OkStatus();
  }
};

SqliteEventLog::SqliteEventLog(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SqliteEventLog::~SqliteEventLog() = default;

Result<std::unique_ptr<SqliteEventLog>> SqliteEventLog::Open(const SqliteLogOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  RETURN_IF_ERROR(MakeDirectories(options.state_directory));
  const std::string lock_path = JoinPath(options.state_directory, "controller.lock");
  Result<FileLock> lock = FileLock::Acquire(lock_path);
  if (!lock.ok()) {
    return lock.status().WithContext("another controller uses the state directory " +
                                     options.state_directory);
  }
  impl->lock = std::move(lock).value();
  const std::string path = JoinPath(options.state_directory, "control.db");
  ASSIGN_OR_RETURN(impl->db, Sqlite::Open(path, false));
  RETURN_IF_ERROR(PrepareDatabase(impl->db));
  RETURN_IF_ERROR(SyncDirectory(options.state_directory));
  ASSIGN_OR_RETURN(impl->insert_event,
                   Statement::Prepare(impl->db, "INSERT INTO events VALUES (?, ?, ?, ?, ?)"));
  // WAL readers never wait for the writer. The connection is not read-only, because a read-only
  // one cannot open a WAL database that no other connection has initialised.
  MutexLock guard(impl->reader_mutex);
  ASSIGN_OR_RETURN(impl->reader, Sqlite::Open(path, false));
  RETURN_IF_ERROR(impl->reader.Run("PRAGMA query_only = 1"));
  return std::unique_ptr<SqliteEventLog>(new SqliteEventLog(std::move(impl)));
}

Status SqliteEventLog::Append(const std::vector<core::Event>& events) {
  if (events.empty()) return OkStatus();
  int64_t sequence = impl_->last_sequence;
  for (const core::Event& event : events) {
    if (event.sequence == ++sequence) continue;
    return InternalError(StrFormat("event %lld does not follow event %lld of the log",
                                   static_cast<long long>(event.sequence),
                                   static_cast<long long>(sequence - 1)));
  }
  ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(impl_->db));
  for (const core::Event& event : events) {
    RETURN_IF_ERROR(impl_->insert_event.Bind(1, event.sequence)
                        .Bind(2, event.time_ms)
                        .Bind(3, event.job_id)
                        .Bind(4, event.worker_id)
                        .Bind(5, core::ToJson(event).Dump())
                        .Finish());
  }
  RETURN_IF_ERROR(transaction.Commit());
  impl_->last_sequence = sequence;
  return OkStatus();
}

Result<core::State> SqliteEventLog::Load() {
  core::SnapshotRows rows;
  RETURN_IF_ERROR(impl_->LoadRows("SELECT id, body FROM jobs", rows.jobs));
  RETURN_IF_ERROR(impl_->LoadRows("SELECT id, body FROM workers", rows.workers));
  std::vector<std::pair<std::string, std::string>> meta;
  RETURN_IF_ERROR(impl_->LoadRows("SELECT key, value FROM meta WHERE key = 'counters'", meta));
  if (!meta.empty()) rows.counters = meta.front().second;
  ASSIGN_OR_RETURN(core::State state, core::State::FromSnapshot(rows));
  ASSIGN_OR_RETURN(Statement select,
                   Statement::Prepare(impl_->db,
                                      "SELECT sequence, body FROM events WHERE sequence > ? "
                                      "ORDER BY sequence"));
  select.Bind(1, state.last_sequence());
  int replayed = 0;
  while (true) {
    ASSIGN_OR_RETURN(const bool row, select.Step());
    if (!row) break;
    ASSIGN_OR_RETURN(const core::Event event, ParseEvent(select.Int(0), select.Text(1)));
    if (const Status applied = state.Apply(event); !applied.ok()) {
      return DataLossError("the log cannot be replayed: " + applied.message());
    }
    if (++replayed % kReplayCommitEvery == 0) state.Commit();
  }
  state.Commit();
  impl_->last_sequence = state.last_sequence();
  return state;
}

Status SqliteEventLog::SaveSnapshot(const core::SnapshotRows& rows) {
  ASSIGN_OR_RETURN(Transaction transaction, Transaction::Begin(impl_->db));
  RETURN_IF_ERROR(impl_->SaveRows("INSERT OR REPLACE INTO jobs VALUES (?, ?)", rows.jobs));
  RETURN_IF_ERROR(impl_->SaveRows("INSERT OR REPLACE INTO workers VALUES (?, ?)", rows.workers));
  RETURN_IF_ERROR(
      impl_->SaveRows("INSERT OR REPLACE INTO meta VALUES (?, ?)", {{"counters", rows.counters}}));
  return transaction.Commit();
}

Result<std::vector<core::Event>> SqliteEventLog::History(const std::string& job_id,
                                                         const std::string& worker_id,
                                                         int64_t after_sequence, int limit) const {
  if (limit < 1 || limit > kMaxHistory) {
    return InvalidArgumentError(
        StrFormat("history limit is %d; it must be 1 to %d", limit, kMaxHistory));
  }
  std::string sql = "SELECT sequence, body FROM events WHERE sequence > ?1";
  if (!job_id.empty()) sql += " AND job = ?2 AND job <> ''";
  if (!worker_id.empty()) sql += " AND worker = ?3 AND worker <> ''";
  sql += " ORDER BY sequence LIMIT ?4";
  MutexLock lock(impl_->reader_mutex);
  ASSIGN_OR_RETURN(Statement select, Statement::Prepare(impl_->reader, sql));
  select.Bind(1, after_sequence).Bind(4, int64_t{limit});
  if (!job_id.empty()) select.Bind(2, job_id);
  if (!worker_id.empty()) select.Bind(3, worker_id);
  std::vector<core::Event> events;
  while (true) {
    ASSIGN_OR_RETURN(const bool row, select.Step());
    if (!row) return events;
    ASSIGN_OR_RETURN(core::Event event, ParseEvent(select.Int(0), select.Text(1)));
    events.push_back(std::move(event));
  }
}

Result<int64_t> SqliteEventLog::Compact(int64_t wall_ms) {
  ASSIGN_OR_RETURN(
      Statement remove,
      Statement::Prepare(impl_->db,
                         "DELETE FROM events WHERE job = '' AND time_ms < ? AND sequence <= "
                         "(SELECT coalesce(max(json_extract(value, '$.last_sequence')), 0) "
                         "FROM meta WHERE key = 'counters')"));
  RETURN_IF_ERROR(remove.Bind(1, wall_ms - impl_->options.worker_history_ms).Finish());
  return impl_->db.changed_rows();
}

}  // namespace nibble::store
