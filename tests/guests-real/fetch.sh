#!/usr/bin/env bash
# Fills a directory (default .cache/guests) with Debian's cloud kernels and busybox for tests/guests-real:
# vmlinuz-VERSION and vmlinux-VERSION of the newest 6.1 and 6.12 that apt offers, and busybox. Wants apt-get; leaves out what
# it cannot get. Nothing of it belongs to this package.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-.cache/guests}
mkdir -p "$out/deb"
out=$(cd "$out" && pwd)
cd "$out/deb" || exit 1
for series in 6.1 6.12; do
  name=$(apt-cache pkgnames "linux-image-$series." 2>/dev/null | grep -E -- '-cloud-amd64$' | sort -V | tail -n 1)
  [ -n "$name" ] && [ ! -e "$out/vmlinuz-$series" ] && timeout 200 apt-get download -q "$name" >/dev/null 2>&1
done
[ -e "$out/busybox" ] || timeout 100 apt-get download -q busybox-static >/dev/null 2>&1
for deb in *.deb; do
  [ -e "$deb" ] && dpkg-deb -x "$deb" unpacked && rm -f "$deb"
done
for image in unpacked/boot/vmlinuz-*; do
  [ -e "$image" ] || continue
  series=$(basename "$image" | sed -E 's/vmlinuz-([0-9]+\.[0-9]+).*/\1/')
  mv "$image" "$out/vmlinuz-$series"
done
for busybox in unpacked/bin/busybox unpacked/usr/bin/busybox; do
  [ -e "$busybox" ] && mv "$busybox" "$out/busybox"
done
rm -rf unpacked

# The ELF kernel inside: payload_offset and payload_length of the setup header; the last four bytes are its unpacked size.
for image in "$out"/vmlinuz-*; do
  [ -e "$image" ] || continue
  elf=$out/vmlinux-${image##*/vmlinuz-}
  [ -e "$elf" ] && continue
  word() { od -An -tu"$2" -j "$1" -N "$2" "$image" | tr -d ' '; }
  offset=$((($(word 0x1f1 1) + 1) * 512 + $(word 0x248 4)))
  length=$(($(word 0x24c 4) - 4))
  payload() { tail -c +$((offset + 1)) "$image" | head -c "$length"; }
  case $(payload | head -c 4 | od -An -tx1 | tr -d ' ') in
    02214c18) tool='lz4 -dcq' ;;
    28b52ffd) tool='zstd -dcq' ;;
    fd377a58) tool='xz -dcq' ;;
    *) continue ;;
  esac
  command -v "${tool%% *}" >/dev/null || continue
  payload | $tool >"$elf.part" 2>/dev/null
  if [ -s "$elf.part" ]; then mv "$elf.part" "$elf"; else rm -f "$elf.part"; fi
done
ls "$out"
