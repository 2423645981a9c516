#!/usr/bin/env bash
# Assembles the sample guests beside their sources; with --check only compares, and says so when binutils are missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! { command -v as && command -v ld && command -v objcopy; } >/dev/null; then
  echo 'binutils are missing: guests not rebuilt'
  [ "${1:-}" = --check ] && [ -z "${CLOISTER_CI:-}" ] && exit 0
  exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
build() { # source without .S, link address
  local name
  name=$(basename "$1")
  as --64 -o "$work/$name.o" "$1.S"
  ld -m elf_x86_64 -Ttext="$2" --entry=_start -o "$work/$name.elf" "$work/$name.o"
  objcopy -O binary -j .text "$work/$name.elf" "$work/$name.bin"
  if [ "${3:-}" = --check ]; then
    if cmp "$work/$name.bin" "$1.bin"; then echo "$1.bin: same"; else status=1; fi
  else
    cp "$work/$name.bin" "$1.bin"
    echo "$1.bin: $(stat -c %s "$1.bin") bytes"
  fi
}
build bench/guests/loops 0x100000 "${1:-}"
build bench/guests/boot 0x7c00 "${1:-}"
build bench/guests/system 0x100000 "${1:-}"
build bench/guests/ghcb 0x100000 "${1:-}"
build bench/guests/memory-loops 0x100000 "${1:-}"
build tests/guests/budget 0x10000 "${1:-}"
build tests/guests/timers 0x100000 "${1:-}"
build tests/guests/flat 0x100000 "${1:-}"
build tests/guests/sev-es 0x200000 "${1:-}"
build tests/guests/sev 0x200000 "${1:-}"
exit $status
