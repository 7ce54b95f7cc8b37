#!/bin/sh
# Seeds of fuzz_wire: each example of schemas/ as a frame, and as the JSON it is.
# usage: tests/fuzz/make_seeds_wire.sh WIRE_TOOL FOLDER
set -eu
tool=$1
folder=$2
mkdir -p "$folder"
"$tool" types | while read -r name _; do
    file=$(printf '%s' "$name" | sed 's/\([a-z0-9]\)\([A-Z]\)/\1_\2/g' | tr 'A-Z' 'a-z')
    "$tool" encode "$name" < "schemas/$file.json" > "$folder/$file.frame"
    cp "schemas/$file.json" "$folder/$file.json"
done
