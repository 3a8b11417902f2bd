#!/bin/sh
# Fetch the viewer again, the one file of the page that is not ours, and check that it is the known one.
set -eu
cd "$(dirname "$0")"
version=0.69.0
sha256=47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder" && npm pack --silent "@niivue/niivue@$version" && tar xzf niivue-niivue-*.tgz)
echo "$sha256  $folder/package/dist/niivue.umd.js" | sha256sum -c -
cp "$folder/package/dist/niivue.umd.js" static/niivue.umd.js
