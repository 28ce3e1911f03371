#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Succeeds when /healthz on 127.0.0.1:$NIBBLE_HEALTH_PORT (or $1) answers 200. Bash alone, so that the
# image needs no HTTP client.
set -u
port=${1:-${NIBBLE_HEALTH_PORT:-7791}}
exec 3<>"/dev/tcp/127.0.0.1/$port" || exit 1
printf 'GET /healthz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3
read -r -t 2 _version code _rest <&3 || exit 1
if [[ $code != 200 ]]; then
  echo "healthz answered $code" >&2
  exit 1
fi
