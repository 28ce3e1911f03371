// SPDX-License-Identifier: Apache-2.0
//
// Sqlite: a thin RAII layer over one SQLite connection and its statements.
//
// Thread-safety: thread-compatible; one connection belongs to one thread or lock. Ownership: owns
// the connection; a Statement borrows it. SQLite's codes become Status: FULL -> RESOURCE_EXHAUSTED,
// BUSY and LOCKED -> UNAVAILABLE, CORRUPT and NOTADB -> DATA_LOSS, CANTOPEN and READONLY and PERM
// -> FAILED_PRECONDITION, the rest -> INTERNAL.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"

struct sqlite3;
struct sqlite3_stmt;

namespace nibble::store {

class Sqlite {
 public:
  Sqlite() = default;
  ~Sqlite();
  Sqlite(Sqlite&& other) noexcept;
  Sqlite& operator=(Sqlite&& other) noexcept;

  // Opens (and creates unless `read_only`) the database file; waits for locks up to 5 seconds.
  static Result<Sqlite> Open(const std::string& path, bool read_only);

  // One or more statements without results.
  Status Run(const std::string& sql);
  // The first column of the first row as integer; `fallback` when there is no row.
  Result<int64_t> QueryInt(const std::string& sql, int64_t fallback);
  // The Status for SQLite result `code` with the connection's message; `what` names the operation.
  Status Error(int code, std::string_view what) const;
  int64_t changed_rows() const;
  sqlite3* handle() const { return db_; }

 private:
  sqlite3* db_ = nullptr;
  std::string path_;
};

// A prepared statement. Bind parameters from 1, Step, read columns from 0, Reset to use it again.
class Statement {
 public:
  Statement() = default;
  ~Statement();
  Statement(Statement&& other) noexcept;
  Statement& operator=(Statement&& other) noexcept;

  static Result<Statement> Prepare(Sqlite& db, const std::string& sql);

  Statement& Bind(int index, int64_t value);
  Statement& Bind(int index, std::string_view text);  // copied
  // True: a row is there. False: done.
  Result<bool> Step();
  // Steps to the end, ignoring rows, and resets.
  Status Finish();
  void Reset();
  int64_t Int(int column) const;
  std::string Text(int column) const;

 private:
  const Sqlite* db_ = nullptr;
  sqlite3_stmt* statement_ = nullptr;
  int bind_error_ = 0;
};

}  // namespace nibble::store
