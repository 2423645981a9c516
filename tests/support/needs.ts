/**
 * Tests that want something this package does not bring: they skip by name when it is missing, and `tests/run.ts`
 * checks in CI that only what `tests/allowed-skips.txt` lists was skipped.
 */
import { spawnSync } from 'node:child_process'
import { accessSync, constants, existsSync, readFileSync } from 'node:fs'
import type { Test } from 'uvu'

function onPath(command: string): boolean {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0
}

function readWrite(path: string): boolean {
  try {
    accessSync(path, constants.R_OK | constants.W_OK)
    return true
  } catch {
    return false
  }
}

/** Debian's 2 MiB OVMF image; `CLOISTER_OVMF` names another place. */
export function ovmfPath(): string | null {
  const places = [process.env['CLOISTER_OVMF'], '/usr/share/ovmf/OVMF.fd', '/usr/share/qemu/OVMF.fd']
  return places.find((p): p is string => p !== undefined && existsSync(p)) ?? null
}

/** Debian's SeaBIOS images lie there. */
export const seabiosPath = (): string => '/usr/share/seabios'

const probes = {
  seabios: () => existsSync(`${seabiosPath()}/bios-256k.bin`),
  ovmf: () => ovmfPath() !== null,
  gcc: () => onPath('gcc'),
  binutils: () => onPath('as') && onPath('ld') && onPath('objcopy'),
  kvm: () => readWrite('/dev/kvm'),
  /** gcc and the build machines' /dev/kvm (PVM, whose differences from SVM tests/kvm/oracle/known.ts lists). */
  kvmOracle: () => readWrite('/dev/kvm') && existsSync('/sys/module/kvm_pvm') && onPath('gcc'),
  /** gcc and an AMD CPU with what the SIMD rows contain: the reference of tests/simd. */
  amdOracle: () => {
    if (!onPath('gcc') || !existsSync('/proc/cpuinfo')) return false
    const words = new Set(readFileSync('/proc/cpuinfo', 'utf8').split(/\s+/))
    return ['AuthenticAMD', 'sse4a', 'sha_ni', 'aes', 'pclmulqdq', 'xsavec', 'misalignsse'].every((w) => words.has(w))
  },
  /** What the shim of tests/suites/selftests wants: Linux on x86-64, gcc, objdump, and no rule against reading a child's memory. */
  shimHost: () =>
    process.platform === 'linux' && process.arch === 'x64' && onPath('gcc') && onPath('objdump') && existsSync('/usr/include/linux/kvm.h'),
  bochs: () => existsSync('/usr/bin/bochs'),
} as const

export type Need = keyof typeof probes
const known = new Map<Need, boolean>()

/** True when the requirement is there; probed once per process. */
export function has(need: Need): boolean {
  let answer = known.get(need)
  if (answer === undefined) {
    answer = probes[need]()
    known.set(need, answer)
  }
  return answer
}

/** Registers a test, or skips it by name when `need` is missing. */
export function needs<T>(suite: Test<T>, need: Need, name: string, run: () => void | Promise<void>): void {
  if (has(need)) {
    suite(name, run)
    return
  }
  process.stdout.write(`# skip: ${name} (needs ${need})\n`)
  suite.skip(name)
}
