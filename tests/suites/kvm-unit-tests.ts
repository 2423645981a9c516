/**
 * kvm-unit-tests through `cloister run`, one by one, with the outcome expected of each. The suite is not part of this
 * package: docs/kvm-unit-tests.md says how to build it beside. Then
 *   node build/tests/suites/kvm-unit-tests.js DIR [--32 DIR] [--efi DIR --firmware FILE] [--plain] [--long] [--jobs N] [NAME...]
 * DIR holds the 64-bit images (x86/*.flat), --32 the i386 ones, --efi those for OVMF; --plain passes no options but smp and
 * arguments; --long adds what runs for many minutes; NAMEs choose titles that contain them. Prints a line per test and a summary;
 * status 1 if an outcome is not the expected one.
 */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

interface Entry {
  title: string
  /** Image without `.flat`; default the title. */
  file?: string
  smp?: number
  args?: string
  cpu?: string
  memory?: string
  /** `pass` (debug-exit 0), `skip` (the suite's own), or the failures that are known. Default pass. */
  expect?: 'pass' | 'skip' | readonly string[]
  /** Exit status, where it is not what `expect` means. */
  status?: number
  /** The same for the image that OVMF starts, where it differs. */
  efi?: { expect: Entry['expect']; status?: number }
  long?: boolean
  /** Word sizes the image exists for; default both. */
  bits?: 64 | 32
}

/** In the order of ranks in which an emulator takes them. */
const table: readonly Entry[] = [
  { title: 'dummy' },
  { title: 'setjmp' },
  { title: 'tsx-ctrl', expect: 'skip' },
  { title: 'rdpru', bits: 64 },
  { title: 'tsc_adjust' },
  { title: 'syscall', bits: 64 },
  { title: 'pcid-enabled', file: 'pcid', bits: 64 },
  { title: 'pcid-disabled', file: 'pcid', cpu: 'default,-pcid,-invpcid', bits: 64 },
  { title: 'pcid-asymmetric', file: 'pcid', cpu: 'default,-pcid,+invpcid', bits: 64 },
  { title: 'tsc' },
  { title: 'kvmclock_test', smp: 2, args: '1000 1767225600' },
  { title: 'memory', bits: 64 },
  { title: 'umip' },
  { title: 'smptest', smp: 2 },
  { title: 'smptest3', file: 'smptest', smp: 3 },
  { title: 'eventinj' },
  { title: 'hypercall' },
  { title: 'idt_test', bits: 64 },
  { title: 'msr' },
  { title: 'xsave', bits: 64 },
  { title: 'smap', efi: { expect: [], status: 126 } },
  { title: 'pku', bits: 64, efi: { expect: ['user page when pkru is'] } },
  { title: 'pks', bits: 64, efi: { expect: ['supervisor page when pkrs is'] } },
  { title: 'la57' },
  { title: 'la57 on a CPU that has it', file: 'la57', cpu: 'EPYC-Genoa', bits: 64 },
  { title: 'rmap_chain', bits: 64 },
  { title: 's3', efi: { expect: [], status: 0 } },
  { title: 'realmode' },
  { title: 'emulator' },
  { title: 'debug', bits: 64 },
  { title: 'access', file: 'access_test', bits: 64, long: true },
  { title: 'access with 5 levels', file: 'access_test', cpu: 'EPYC-Genoa', bits: 64, long: true },
  { title: 'vmexit_cpuid', file: 'vmexit', args: 'cpuid' },
  { title: 'vmexit_vmcall', file: 'vmexit', args: 'vmcall' },
  { title: 'vmexit_mov_from_cr8', file: 'vmexit', args: 'mov_from_cr8' },
  { title: 'vmexit_mov_to_cr8', file: 'vmexit', args: 'mov_to_cr8' },
  { title: 'vmexit_inl_pmtimer', file: 'vmexit', args: 'inl_from_pmtimer' },
  { title: 'vmexit_ipi', file: 'vmexit', smp: 2, args: 'ipi' },
  { title: 'vmexit_ipi_halt', file: 'vmexit', smp: 2, args: 'ipi_halt' },
  { title: 'vmexit_ple_round_robin', file: 'vmexit', args: 'ple_round_robin' },
  { title: 'vmexit_tscdeadline', file: 'vmexit', args: 'tscdeadline' },
  { title: 'vmexit_tscdeadline_immed', file: 'vmexit', args: 'tscdeadline_immed' },
  { title: 'vmexit_cr0_wp', file: 'vmexit', smp: 2, args: 'toggle_cr0_wp' },
  { title: 'vmexit_cr4_pge', file: 'vmexit', smp: 2, args: 'toggle_cr4_pge' },
  { title: 'x2apic', file: 'apic', smp: 2, bits: 64 },
  { title: 'xapic', file: 'apic', smp: 2, cpu: 'default,-x2apic', bits: 64 },
  { title: 'ioapic', smp: 4, bits: 64 },
  { title: 'hpet_read_test', smp: 2 },
  { title: 'cmpxchg8b', bits: 32 },
  { title: 'taskswitch', bits: 32 },
  { title: 'taskswitch2', bits: 32 },
  { title: 'tscdeadline_latency', bits: 64 },
  { title: 'lam', bits: 64 },
  // It takes 1 GiB, and a 32-bit image maps no memory beyond 2 GiB.
  { title: 'asyncpf', memory: '2048M', expect: 'skip' },
  { title: 'cet', smp: 2, bits: 64, expect: 'skip' },
  { title: 'amd_sev', bits: 64, expect: 'skip' },
  { title: 'svm', bits: 64, expect: 'skip' },
  { title: 'svm_npt', bits: 64, expect: 'skip' },
  { title: 'vmx', bits: 64, expect: 'skip' },
  { title: 'hyperv_clock', smp: 2, bits: 64, expect: 'skip' },
  { title: 'hyperv_connections', smp: 2, expect: 'skip' },
  { title: 'hyperv_stimer', smp: 2, expect: 'skip' },
  { title: 'hyperv_synic', smp: 2, expect: 'skip' },
  { title: 'pmu_lbr', bits: 64, expect: 'skip' },
  { title: 'pmu_pebs', bits: 64, expect: 'skip' },
  { title: 'pmu', expect: [' <= 0 <= ', 'AMD: '], status: 127 },
  { title: 'vmware_backdoors', bits: 64, expect: ['vmware_backdoors: '] },
  { title: 'intel-iommu', smp: 4, bits: 64, expect: ['vtd_init: fault status check'] },
  { title: 'init', expect: [], status: 0 },
  { title: 'sieve', long: true },
]

const cli = fileURLToPath(new URL('../../../dist/cli.js', import.meta.url))
const SKIPPED = 77

interface Result {
  good: boolean
  text: string
}

type Kind = 64 | 32 | 'efi'

const image = (folder: string, kind: Kind, entry: Entry): string =>
  join(folder, `${entry.file ?? entry.title}.${kind === 'efi' ? 'efi' : 'flat'}`)

function run(folder: string, kind: Kind, entry: Entry): Promise<Result> {
  const { smp = 1, args, cpu = 'default' } = entry
  const { expect = 'pass', status: exact } = (kind === 'efi' ? entry.efi : undefined) ?? entry
  const command = [cli, 'run', '--kernel', image(folder, kind, entry), '--smp', String(smp)]
  if (!plain) command.push('--cpu', cpu)
  const memory = entry.memory ?? (kind === 'efi' ? '512M' : undefined)
  if (memory !== undefined) command.push('--memory', memory)
  if (kind === 'efi') command.push('--firmware', firmware)
  command.push('--max-instructions', entry.long ? '200000000000' : '20000000000', '--timeout', entry.long ? '7200' : '1800')
  // The loader of an EFI application makes its first word argv[0].
  if (args !== undefined) command.push('--append', kind === 'efi' ? `${entry.title} ${args}` : args)
  const start = performance.now()
  return new Promise((resolve) => {
    const child = spawn(process.execPath, command, { stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()))
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()))
    child.on('close', (status) => {
      const lines = (label: string): string[] => [...output.matchAll(new RegExp(`^${label}: (.*?)\\r?$`, 'gm'))].map((m) => m[1] ?? '')
      const failures = lines('FAIL')
      const known = Array.isArray(expect) ? expect : []
      // The images exit with code 0 passed, 1 failed, 77 >> 1 all skipped; the machine makes that (code << 1) | 1.
      const wanted = status === (exact ?? (expect === 'pass' ? 1 : expect === 'skip' ? SKIPPED : 3))
      const same = failures.every((f) => known.some((k) => f.includes(k))) && known.every((k) => failures.some((f) => f.includes(k)))
      const counts = `${lines('PASS').length} pass, ${failures.length} fail, ${lines('SKIP').length} skip`
      const seconds = ((performance.now() - start) / 1000).toFixed(1)
      const detail = wanted && same ? '' : `\n${output.split('\n').slice(-12).join('\n')}\n${failures.map((f) => `  FAIL ${f}`).join('\n')}`
      resolve({ good: wanted && same, text: `status ${status}: ${counts} (${seconds} s)${detail}` })
    })
  })
}

const words = process.argv.slice(2)
const take = (flag: string): string | undefined => {
  const at = words.indexOf(flag)
  return at < 0 ? undefined : words.splice(at, 2)[1]
}
const flag = (name: string): boolean => {
  const at = words.indexOf(name)
  return at >= 0 && words.splice(at, 1).length > 0
}
const folder32 = take('--32')
const folderEfi = take('--efi')
const firmware = take('--firmware') ?? '/usr/share/ovmf/OVMF.fd'
const workers = Number(take('--jobs') ?? Math.min(4, availableParallelism()))
const long = flag('--long')
const plain = flag('--plain')
const [folder64, ...names] = words
if (folder64 === undefined || !existsSync(folder64)) {
  process.stderr.write('usage: kvm-unit-tests.js DIR [--32 DIR] [--efi DIR] [--plain] [--long] [--jobs N] [NAME...]   (DIR holds *.flat)\n')
  process.exit(122)
}

const jobs: [folder: string, kind: Kind, entry: Entry][] = []
for (const [folder, kind] of [
  [folder64, 64],
  [folder32, 32],
  [folderEfi, 'efi'],
] as const) {
  if (folder === undefined) continue
  for (const entry of table) {
    const bits = kind === 'efi' ? 64 : kind
    if ((entry.bits ?? bits) !== bits || (entry.long && !long) || (names.length > 0 && !names.some((n) => entry.title.includes(n))))
      continue
    // A choice of CPU makes another test of the same image; without it there is one.
    if (plain && entry.cpu !== undefined) continue
    // Not every test is built for firmware, and one for firmware alone.
    if ((kind === 'efi' || entry.title === 'amd_sev') && !existsSync(image(folder, kind, entry))) continue
    jobs.push([folder, kind, entry])
  }
}

let good = 0
let missing = 0
let next = 0
async function worker(): Promise<void> {
  for (let job = jobs[next++]; job !== undefined; job = jobs[next++]) {
    const [folder, kind, entry] = job
    if (!existsSync(image(folder, kind, entry))) {
      missing++
      process.stdout.write(`--   ${kind} ${entry.title}: no image\n`)
      continue
    }
    const result = await run(folder, kind, entry)
    if (result.good) good++
    process.stdout.write(`${result.good ? 'ok  ' : 'FAIL'} ${kind} ${entry.title}: ${result.text}\n`)
  }
}
await Promise.all(Array.from({ length: workers }, worker))
const bad = jobs.length - good - missing
process.stdout.write(`${good} as expected, ${bad} not${missing > 0 ? `, ${missing} without an image` : ''}\n`)
process.exitCode = bad > 0 ? 1 : 0
