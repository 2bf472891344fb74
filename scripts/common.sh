# Shared by the scripts here: finds Python, Rust and a linker, installs what Debian can give, makes .venv.
# Sourced with `set -euo pipefail` on; leaves the working directory at the top of the tree.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

export XENVIRT_CACHE=${XENVIRT_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/xenvirt}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
python=.venv/bin/python

# A crate that is built by itself, with a feature of vm-memory which the others must not have.
compat=(--manifest-path rust/compat/Cargo.toml --target-dir target/compat --locked)

say() { printf '\n== %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Runs the rest under a heading and says how long it took. (Not `"$@" || die`: that would switch off `set -e` in it.)
step() {
    local start=$SECONDS
    under_way=$1
    shift
    say "$under_way"
    "$@"
    say "$under_way: $((SECONDS - start)) s"
    under_way=
}
under_way=
trap '[ $? = 0 ] || [ -z "$under_way" ] || say "$under_way: FAILED"' EXIT

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# debian PACKAGE...: installs those that are missing, or says what is missing.
debian() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || die "not a Debian system; what is wanted here are its packages ${missing[*]}"
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || die "as root: apt-get install ${missing[*]}"
    say "apt-get install ${missing[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -oAcquire::Retries=3 -oDPkg::Lock::Timeout=600 -oDpkg::Use-Pty=0)
    as_root "${apt[@]}" update >&2 || true # one source of many may fail and be none of ours
    as_root "${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >&2
}

# The oldest versions that do; pyproject.toml and Cargo.toml say the same.
find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            [ "$("$candidate" -c 'import sys; print(sys.base_prefix)')" = /usr ] || continue
            debian python3-venv
        fi
        echo "$candidate"
        return
    done
    die "no Python 3.11 or newer found"
}

need_rust() {
    # rustup's proxies look for their toolchains below HOME; with another HOME they are still beside cargo.
    local cargo
    cargo=$(command -v cargo) || die "no cargo found; Rust 1.89 or newer is needed (https://rustup.rs)"
    local beside
    beside=$(dirname "$(dirname "$(dirname "$cargo")")")/.rustup
    if [ -z "${RUSTUP_HOME:-}" ] && ! cargo --version >/dev/null 2>&1 && [ -d "$beside" ]; then
        export RUSTUP_HOME=$beside
    fi
    cargo --version >/dev/null || die "cargo does not run"
    command -v cc >/dev/null || debian gcc libc6-dev
}

make_venv() {
    [ -x "$python" ] && "$python" -c 'import pip' 2>/dev/null && return
    local base
    base=$(find_python)
    "$base" -m venv --clear .venv
}

# Builds with the tests' tools, the Python sources used in place: an edit there needs no new build.
install_for_tests() {
    need_rust
    make_venv
    "$python" -c 'import maturin' 2>/dev/null || "$python" -m pip install -q 'maturin>=1.9.4,<2'
    # A directory of its own: maturin and cargo build pyo3 with different settings and would undo each other's work.
    VIRTUAL_ENV=$PWD/.venv "$python" -m maturin develop -q --release --locked --extras test --target-dir target/maturin
}
