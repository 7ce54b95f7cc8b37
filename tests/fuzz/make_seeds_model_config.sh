#!/bin/sh
# Seeds of fuzz_model_config: the config.json of each model in the tree, then a zero byte and its generation_config.json
# where it has one.
# usage: tests/fuzz/make_seeds_model_config.sh FOLDER
set -eu
folder=$1
mkdir -p "$folder"
for config in deploy/models/*/config.json deploy/shapes/*/config.json tests/golden/*/config.json; do
    directory=$(dirname "$config")
    seed="$folder/$(basename "$directory")"
    sed 's/^ *//' "$config" > "$seed" # libFuzzer learns faster from fewer bytes
    [ -f "$directory/generation_config.json" ] || continue
    printf '\0' >> "$seed"
    tr -d '\n' < "$directory/generation_config.json" >> "$seed"
done
