#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs `nibble` with the token of the compose file's secrets volume.
set -eu
NIBBLE_TOKEN=$(cat /run/nibble/token)
export NIBBLE_TOKEN
exec nibble "$@"
