#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a small certificate authority and one server certificate for a controller.
#
#   make-certs.sh FOLDER NAME...     e.g. make-certs.sh certs controller localhost 127.0.0.1
#
# Writes ca.crt (give it to workers and people: --tls-ca), server.crt and server.key (for the
# controller: --tls-cert, --tls-key) and ca.key (keep it off the cluster). The certificates are valid
# for $DAYS days (default 825). An existing authority is used again, an existing server certificate is
# replaced, so running it anew renews.
set -eu
if [ $# -lt 2 ]; then
  echo "usage: make-certs.sh FOLDER NAME...  (names and addresses that clients use for the controller)" >&2
  exit 2
fi
folder=$1
shift
days=${DAYS:-825}
umask 077
mkdir -p "$folder"

if [ ! -s "$folder/ca.key" ] || [ ! -s "$folder/ca.crt" ]; then
  openssl ecparam -name prime256v1 -genkey -noout -out "$folder/ca.key"
  openssl req -x509 -new -key "$folder/ca.key" -sha256 -days "$days" -subj "/CN=Nibble CA" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -out "$folder/ca.crt"
fi

names=
for name in "$@"; do
  case $name in
    *[!0-9.]*) case $name in *:*) kind=IP ;; *) kind=DNS ;; esac ;;
    *) kind=IP ;;
  esac
  names="${names:+$names,}$kind:$name"
done
printf 'subjectAltName=%s\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n' \
  "$names" > "$folder/server.ext"
openssl ecparam -name prime256v1 -genkey -noout -out "$folder/server.key"
openssl req -new -key "$folder/server.key" -subj "/CN=$1" -out "$folder/server.csr"
openssl x509 -req -in "$folder/server.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" \
  -CAcreateserial -sha256 -days "$days" -extfile "$folder/server.ext" -out "$folder/server.crt"
rm -f "$folder/server.csr" "$folder/server.ext" "$folder/ca.srl"
chmod 644 "$folder/ca.crt" "$folder/server.crt"
echo "wrote $folder/ca.crt, server.crt, server.key for $names"
