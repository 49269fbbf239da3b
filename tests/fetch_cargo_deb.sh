# Sourced by tests/run: builds cargo-deb, which builds the Debian package, in the target directory, once.
#
# A failure is not an error: without cargo-deb, its tests report NOT RUN.
# shellcheck shell=bash

cargo_deb_version=3.8.0

fetch_cargo_deb() {
    local tools=${CARGO_TARGET_DIR:-target}/tools
    if "$tools/bin/cargo-deb" --version 2>/dev/null | grep -qF "$cargo_deb_version"; then
        echo "cargo-deb $cargo_deb_version is here"
        return
    fi
    # Unoptimised: it packs one package, and xz does the work.
    cargo install --quiet --debug --locked --no-default-features --root "$tools" --target-dir "$tools/build" \
        --version "$cargo_deb_version" cargo-deb || echo "cargo-deb cannot be built here"
    rm -rf "$tools/build"
}
