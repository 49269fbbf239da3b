# Sourced by tests/run and tests/bench/run: installs the Debian packages that are missing.
#
# While packages are installed, a policy keeps services from starting. The machine's own policy is restored afterwards,
# or by the next run if a run was killed.
#
#   needs=("COMMAND PACKAGE what for" …); announce_packages; packages
# shellcheck shell=bash disable=SC2154

# Daemons live in sbin, which a user's PATH may lack.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

policy=/usr/sbin/policy-rc.d
saved_policy=$policy.before-provost-tests

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif [[ -t 0 ]]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

# Restores the machine's own policy, also after a run that was killed.
restore_policy() {
    if [[ -e $saved_policy || -L $saved_policy ]]; then
        as_root mv -f "$saved_policy" "$policy"
    elif grep -qs 'by the tests of provost' "$policy"; then
        as_root rm -f "$policy"
    fi
}

# invoke-rc.d asks this policy before it starts a service; 101 means "forbidden".
forbid_services() {
    restore_policy || return
    if [[ -e $policy || -L $policy ]]; then
        as_root mv "$policy" "$saved_policy" || return
    fi
    printf '#!/bin/sh\n# Written by the tests of provost, for the time of an installation.\nexit 101\n' |
        as_root tee "$policy" >/dev/null && as_root chmod 755 "$policy"
}

# The units that start at boot.
enabled_units() {
    command -v systemctl >/dev/null && systemctl --root=/ list-unit-files --state=enabled --no-legend | cut -d' ' -f1 | sort
}

# Packages that we installed, and their dependencies, must not start at boot either.
keep_from_boot() {
    local before=$1 unit
    comm -13 <(printf '%s\n' "$before") <(enabled_units) | while read -r unit; do
        as_root systemctl disable --quiet "$unit" </dev/null || echo "still enabled at boot: $unit"
    done
}

install_debian() (
    local enabled
    # A subshell, so that its exit always restores the policy.
    trap restore_policy EXIT
    trap 'exit 130' INT TERM HUP
    forbid_services || exit
    enabled=$(enabled_units)
    as_root apt-get update -q || echo "apt-get update failed; continuing with the old package lists"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "$@" || exit
    keep_from_boot "$enabled"
)

missing_packages() {
    local need command package
    for need in "${needs[@]}"; do
        read -r command package _ <<<"$need"
        command -v "$command" >/dev/null || printf '%s\n' "$package"
    done | sort -u
}

# Prints the packages and files that `packages` will install.
announce_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]} == 0)); then
        echo "  no Debian packages"
    else
        echo "  Debian packages, by apt-get install --no-install-recommends: ${missing[*]}"
        echo "  meanwhile $policy, which keeps their services from starting"
    fi
}

packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]} == 0)); then
        echo "nothing is missing"
        return
    fi
    echo "missing: ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        echo "this machine has no apt-get; install the contents of these Debian packages yourself"
        return 1
    elif ((EUID != 0)) && ! command -v sudo >/dev/null; then
        echo "permission denied: neither root nor sudo; run apt-get install ${missing[*]}"
        return 1
    fi
    install_debian "${missing[@]}" || return
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]} == 0)) || { echo "still missing: ${missing[*]}" && return 1; }
}
