# Sourced by tests/run: builds the cargo-deb that makes our Debian package, into the target directory, once.
#
# If it cannot be built, the test that needs it prints NOT RUN; that is not a failure.
# shellcheck shell=bash

cargo_deb_version=3.8.0

cargo_deb_tools=${CARGO_TARGET_DIR:-target}/tools

has_cargo_deb() { "$cargo_deb_tools/bin/cargo-deb" --version 2>/dev/null | grep -qF "$cargo_deb_version"; }

announce_cargo_deb() {
    has_cargo_deb || echo "  $cargo_deb_tools/bin/cargo-deb: by cargo install --version $cargo_deb_version cargo-deb"
}

fetch_cargo_deb() {
    local tools=$cargo_deb_tools
    if has_cargo_deb; then
        echo "cargo-deb $cargo_deb_version is here"
        return
    fi
    # Unoptimized: it packs one package, and xz does the work.
    cargo install --quiet --debug --locked --no-default-features --root "$tools" --target-dir "$tools/build" \
        --version "$cargo_deb_version" cargo-deb || echo "cannot build cargo-deb"
    rm -rf "$tools/build"
}
