# Functions shared by the scripts. To be sourced.

started=$SECONDS

# Runs a command under a heading and prints its duration.
check() {
    local heading=$1 begun=$SECONDS
    shift
    printf '\n== %s: %s\n' "$heading" "$*"
    if ! "$@"; then
        printf '\n== FAILED: %s\n   run again with: %s\n' "$heading" "$*" >&2
        exit 1
    fi
    printf '== %s: good (%d s)\n' "$heading" $((SECONDS - begun))
}

finish() {
    printf '\n== all good (%d s)\n' $((SECONDS - started))
    exit 0
}

# The tests create network namespaces, devices and routes.
need_root() {
    if [ "$(id -u)" != 0 ]; then
        echo "The tests create network namespaces: run this as root, for example" >&2
        echo "    sudo --preserve-env=PATH,HOME $0" >&2
        exit 1
    fi
}

# Builds the shipped programs and sets $shipped to their directory: static programs if the musl target is installed (rustup
# target add x86_64-unknown-linux-musl; Debian: musl-tools), else programs for the C library of this system.
build_shipped() {
    local host target
    host=$(rustc -vV | sed -n 's/^host: //p')
    target=${host/-gnu/-musl}
    if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ] || ! command -v musl-gcc >/dev/null; then
        target=$host
    fi
    cargo build --locked --quiet --profile dist --target "$target" -p flanneld-bin -p flannel-cni
    shipped=${CARGO_TARGET_DIR:-target}/$target/dist
}
