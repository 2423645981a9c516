/** An initramfs (cpio "newc", Linux Documentation/driver-api/early-userspace/buffer-format.rst) with busybox and one script. */

const script = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
n=$(/bin/busybox grep -c ^processor /proc/cpuinfo)
[ "$n" = 1 ] && s= || s=s
echo "release $(/bin/busybox uname -r)"
echo "exe $(/bin/busybox readlink /proc/self/exe)"
echo "user space, $n CPU$s"
/bin/busybox poweroff -f
`

interface Entry {
  name: string
  mode: number
  bytes?: Uint8Array
  device?: [major: number, minor: number]
}

function record(inode: number, { name, mode, bytes = new Uint8Array(0), device = [0, 0] }: Entry): Uint8Array {
  const fields = [inode, mode, 0, 0, 1, 0, bytes.length, 0, 0, ...device, name.length + 1, 0]
  const head = `070701${fields.map((f) => f.toString(16).padStart(8, '0')).join('')}${name}\0`
  const start = Math.ceil(head.length / 4) * 4
  const out = new Uint8Array(Math.ceil((start + bytes.length) / 4) * 4)
  out.set(new TextEncoder().encode(head))
  out.set(bytes, start)
  return out
}

export function initramfs(busybox: Uint8Array): Uint8Array {
  const entries: Entry[] = [
    { name: 'bin', mode: 0o40755 },
    { name: 'dev', mode: 0o40755 },
    { name: 'proc', mode: 0o40755 },
    { name: 'dev/console', mode: 0o20600, device: [5, 1] },
    { name: 'bin/busybox', mode: 0o100755, bytes: busybox },
    { name: 'init', mode: 0o100755, bytes: new TextEncoder().encode(script) },
    { name: 'TRAILER!!!', mode: 0 },
  ]
  const records = entries.map((e, i) => record(i + 1, e))
  const out = new Uint8Array(records.reduce((n, r) => n + r.length, 0))
  let at = 0
  for (const r of records) {
    out.set(r, at)
    at += r.length
  }
  return out
}
