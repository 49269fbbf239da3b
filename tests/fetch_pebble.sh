# Sourced by tests/run: fetches a Pebble with ARI and profiles, which Debian 12's lacks.
#
# It comes from a later Debian and is only unpacked, into the target directory, where the tests find it. If it cannot be
# fetched, the tests that need it print NOT RUN; that is not a failure.
# shellcheck shell=bash

pebble_version=2.10.0+ds1-2
declare -A pebble_sha256=(
    [amd64]=b9a3a3920143f1a6fc568dfa88247be22cafa96c845fe62938c08982a15df315
    [arm64]=0364a75c5a47a963b88125ce1ec69869d1af0aacd1062926476b8d2929289364
)
debian_keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# The mirror of this machine's packages.
debian_mirror() {
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' 2>/dev/null | head -n 1)
    printf '%s\n' "${mirror:-http://deb.debian.org/debian/}"
}

# The pinned version, by its pinned checksum.
download_pinned() {
    local architecture=$1 file=pebble_${pebble_version}_$1.deb
    [[ -n ${pebble_sha256[$architecture]:-} ]] || return
    curl -fsSL --max-time 120 -o "$file" "$(debian_mirror)pool/main/p/pebble/$file" &&
        sha256sum --quiet -c - <<<"${pebble_sha256[$architecture]}  $file"
}

# The archive's current version, by the checksum in its signed index. Separate lists, so that the machine's apt does not
# change.
download_current() {
    local options=(
        -q -o Dir::Etc::sourcelist="$PWD/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State="$PWD"
        -o Dir::State::status=/dev/null -o Dir::Cache="$PWD" -o APT::Sandbox::User=
    )
    mkdir -p lists/partial archives/partial
    printf 'deb [signed-by=%s] %s sid main\n' "$debian_keyring" "$(debian_mirror)" >sources.list
    rm -f pebble_*.deb
    apt-get "${options[@]}" update && apt-get "${options[@]}" download pebble
}

# In an empty folder: downloads, unpacks, and checks that it runs here.
unpack_pebble() {
    local architecture
    architecture=$(dpkg --print-architecture) || return
    download_pinned "$architecture" || download_current || return
    dpkg-deb -x pebble_*.deb unpacked && unpacked/usr/bin/pebble -version
}

target_directory() {
    cargo metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

announce_pebble() {
    local target
    target=$(target_directory)
    [[ -x $target/pebble/usr/bin/pebble ]] ||
        echo "  $target/pebble: Pebble $pebble_version or newer, downloaded from Debian's archive and unpacked"
}

fetch_pebble() {
    local target folder
    target=$(target_directory)
    if [[ -x $target/pebble/usr/bin/pebble ]]; then
        echo "it is here: $target/pebble"
        return
    fi
    mkdir -p "$target" && folder=$(mktemp -d "$target/pebble.XXXXXX") || return
    if (cd "$folder" && unpack_pebble); then
        rm -rf "$target/pebble" && mv "$folder/unpacked" "$target/pebble"
    else
        echo "cannot fetch a newer Pebble; the tests that need it do not run"
    fi
    rm -rf "$folder"
}
