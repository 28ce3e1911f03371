#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Writes a random token to the file $1, unless it is there already. Only its owner can read it.
set -eu
file=${1:?usage: make-token.sh FILE}
if [ -s "$file" ]; then
  echo "$file is there; keeping it"
  exit 0
fi
umask 077
openssl rand -hex 32 > "$file.new"
mv "$file.new" "$file"
echo "wrote $file"
