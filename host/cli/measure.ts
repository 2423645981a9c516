/**
 * `cloister measure`: the launch digest of a guest, taken from a launch inside the emulator. Nothing is run and nothing
 * is computed a second time: the digest is what the modelled firmware reports.
 */
import { Machine, type MachineOptions, type MachineType, vcpuTypes } from '../vmm/index.ts'
import { type Command, count, type Values } from './arguments.ts'
import { STATUS, usage } from './errors.ts'
import { guestOptions, imageOptions, readGuestOptions, readImageOptions } from './machine-options.ts'
import { json, print } from './output.ts'

/** Memory does not enter the digest; this is enough for any image. */
const MEMORY = 64 * 1024 * 1024

export const measure: Command = {
  name: 'measure',
  summary: 'The launch digest of a guest, in hexadecimal: SHA-256 for sev and sev-es.',
  options: [
    ...guestOptions,
    ...imageOptions,
    { name: 'vcpus', value: 'N', help: 'number of vCPUs (default 1)' },
    { name: 'legacy', help: 'launch by the legacy init commands (KVM_SEV_INIT, KVM_SEV_ES_INIT)' },
    { name: 'explain', help: 'list every launch step with its running digest' },
    { name: 'against', value: 'DIGEST', help: 'say which usual variation gives that digest; status 1 if none does' },
    { name: 'json', help: 'as JSON' },
  ],
  notes: `
The digest is the firmware's or the image's and, of SEV-ES, the vCPUs' registers. A kernel that boots through firmware, its
initrd and its command line are not measured: kernel hashes are to come.`,
  run: measureGuest,
}

const legacyOf: Partial<Record<MachineType, MachineType>> = { sev: 'sev-legacy', 'sev-es': 'sev-es-legacy' }

function readOptions(values: Values): MachineOptions {
  const options: MachineOptions = { ...readGuestOptions(values), ...readImageOptions(values), memory: MEMORY }
  const vcpus = count('vcpus', values.text('vcpus'))
  if (vcpus !== undefined && (vcpus < 1 || vcpus > 255)) usage(`--vcpus ${vcpus}: must be a whole number from 1 to 255`)
  if (vcpus !== undefined) options.smp = vcpus
  const type = options.type ?? 'default'
  if (type === 'default') usage('--type: an ordinary VM is not measured; one of sev, sev-es, sev-legacy, sev-es-legacy')
  if (values.has('legacy'))
    options.type = legacyOf[type] ?? (type.endsWith('-legacy') ? type : usage(`--legacy: VM type '${type}' has no legacy init command`))
  return options
}

async function launch(options: MachineOptions) {
  const machine = await Machine.create(options)
  try {
    return { digest: machine.measure(), steps: machine.launchSteps }
  } finally {
    machine[Symbol.dispose]()
  }
}

async function measureGuest(values: Values): Promise<number> {
  const options = readOptions(values)
  const against = values.text('against')
  if (against !== undefined && values.has('explain')) usage('--against and --explain exclude each other')
  if (against !== undefined) return compare(options, against.toLowerCase(), values.has('json'))
  const { digest, steps } = await launch({ ...options, stepByPage: values.has('explain') })
  if (values.has('json')) print(json(values.has('explain') ? { type: options.type, digest, steps } : { type: options.type, digest }))
  else {
    if (values.has('explain')) {
      for (const step of steps) print(`${step.address.padEnd(12)} ${step.kind.padEnd(6)} ${step.source.padEnd(24)} ${step.digest}\n`)
    }
    print(`${digest}\n`)
  }
  return STATUS.ok
}

interface Variation {
  what: string
  options: MachineOptions
}

/** The usual reasons why a digest differs, likely and cheap ones first. */
function* variations(base: MachineOptions): Generator<Variation> {
  yield { what: 'exactly these options', options: base }
  const types: MachineType[] = ['sev', 'sev-es', 'sev-es-legacy']
  // Aliases of one signature measure alike: the first name of each.
  const names = [
    ...new Map(
      Object.entries(vcpuTypes)
        .toReversed()
        .map(([name, signature]) => [signature, name]),
    ).values(),
  ].toReversed()
  const seen = new Set<string>()
  const make = (change: Partial<MachineOptions>): Variation | null => {
    const type = change.type ?? base.type ?? 'sev-es'
    // Plain SEV measures no VMSA: nothing but the image counts.
    const { vcpuType, smp, guestFeatures } = type.startsWith('sev-es') ? change : {}
    const parts = [type === base.type ? '' : `--type ${type}`]
    if (vcpuType !== undefined) parts.push(`--vcpu-type ${vcpuType}`)
    if (smp !== undefined) parts.push(`--vcpus ${smp}`)
    if (guestFeatures !== undefined) parts.push(`--guest-features 0x${guestFeatures.toString(16)}`)
    const what = parts.filter((part) => part !== '').join(' ')
    if (what === '' || seen.has(what)) return null
    seen.add(what)
    const policy = type === base.type ? base.policy : type === 'sev' ? 1n : 5n
    const options: MachineOptions = { ...base, ...change, type }
    if (policy !== undefined) options.policy = policy
    return { what, options }
  }
  const changes = function* (): Generator<Partial<MachineOptions>> {
    for (const type of types) yield { type }
    for (const guestFeatures of [0n, 0x20n]) yield { guestFeatures }
    for (const vcpuType of names) yield { vcpuType }
    for (let smp = 1; smp <= 8; smp++) yield { smp }
    for (const type of types) for (const vcpuType of names) for (let smp = 1; smp <= 8; smp++) yield { type, vcpuType, smp }
    for (const vcpuType of names) for (let smp = 1; smp <= 8; smp++) yield { vcpuType, smp, guestFeatures: 0x20n }
    for (let smp = 9; smp <= 64; smp++) yield { smp }
  }
  for (const change of changes()) {
    const variation = make(change)
    if (variation !== null) yield variation
  }
}

async function compare(base: MachineOptions, wanted: string, asJson: boolean): Promise<number> {
  if (!/^(?:[0-9a-f]{64}|[0-9a-f]{96})$/.test(wanted)) usage(`--against: '${wanted}' is not a digest of 64 or 96 hexadecimal digits`)
  let tried = 0
  for (const { what, options } of variations(base)) {
    let digest: string
    try {
      digest = (await launch(options)).digest
    } catch (error) {
      if (tried === 0) throw error
      // A variation that cannot be launched (an unknown model, say) cannot be the answer.
      continue
    }
    tried++
    if (digest !== wanted) continue
    print(asJson ? json({ match: what, digest, tried }) : `${what} gives ${digest}\n`)
    return STATUS.ok
  }
  print(asJson ? json({ match: null, digest: wanted, tried }) : `none of ${tried} variations gives ${wanted}: another image, most likely\n`)
  return STATUS.no
}
