/** Options that `run` and `measure` share: what the guest is and how it is launched. */
import { type ImageMode, imageModes, type MachineOptions, machineTypes } from '../vmm/index.ts'
import { address, choice, count, hex, type Option, size, type Values } from './arguments.ts'
import { usage } from './errors.ts'
import { readInput } from './files.ts'

export const guestOptions: readonly Option[] = [
  { name: 'type', value: 'T', help: `VM type: ${machineTypes.join(', ')} (default: default; snp and tdx are to come)` },
  { name: 'firmware', value: 'FILE', help: 'OVMF-style image or PC BIOS, mapped to end at 4 GiB' },
  { name: 'policy', value: 'HEX', help: 'SEV guest policy (default 0x1; 0x5 for sev-es)' },
  { name: 'vcpu-type', value: 'NAME', help: 'CPU whose signature the measured VMSA holds: EPYC-Milan, EPYC-v4, …' },
  { name: 'guest-features', value: 'HEX', help: 'SEV_FEATURES of the VMSA' },
  { name: 'linux', value: '6.12|7.3', help: 'whose KVM is modelled (default 7.3)' },
  {
    name: 'kernel',
    value: 'FILE',
    help: 'bzImage, ELF with a PVH note, or Multiboot 1 (told apart by content); with --firmware it boots through it',
  },
  { name: 'initrd', value: 'FILE', help: 'initial RAM disk, or the Multiboot module' },
  { name: 'append', value: 'STRING', help: 'kernel command line' },
]

export const imageOptions: readonly Option[] = [
  { name: 'image', value: 'FILE', help: 'raw flat guest instead of firmware' },
  { name: 'load', value: 'ADDR', help: 'where the image is loaded' },
  { name: 'entry', value: 'ADDR', help: 'where it is entered (default: the load address)' },
  { name: 'mode', value: 'MODE', help: `CPU mode at entry: ${imageModes.join(', ')}` },
]

/** Leaves out what was not given, so that the machine's own defaults hold. */
function given<T extends object>(values: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(values).filter(([, v]) => v !== undefined)) as { [K in keyof T]?: Exclude<T[K], undefined> }
}

export function readGuestOptions(values: Values): MachineOptions {
  const type = choice('type', values.text('type'), machineTypes, 'default')
  if (type === 'default')
    for (const name of ['policy', 'guest-features']) if (values.has(name)) usage(`--${name} is for confidential guests: give --type`)
  const linux = values.text('linux')
  const firmware = values.text('firmware')
  const kernel = values.text('kernel')
  const initrd = values.text('initrd')
  return {
    type,
    ...given({
      policy: hex('policy', values.text('policy')),
      vcpuType: values.text('vcpu-type'),
      guestFeatures: hex('guest-features', values.text('guest-features')),
      linux: linux === undefined ? undefined : choice('linux', linux, ['6.12', '7.3'] as const, '7.3'),
      firmware: firmware === undefined ? undefined : readInput('--firmware', firmware),
      kernel: kernel === undefined ? undefined : readInput('--kernel', kernel),
      initrd: initrd === undefined ? undefined : readInput('--initrd', initrd),
      append: values.text('append'),
    }),
  }
}

export function readImageOptions(values: Values): Pick<MachineOptions, 'image'> {
  const path = values.text('image')
  if (path === undefined) {
    for (const name of ['load', 'entry', 'mode']) if (values.has(name)) usage(`--${name} belongs to --image`)
    return {}
  }
  const mode: ImageMode = choice(
    'mode',
    values.text('mode') ?? usage('--image wants --mode real16, protected32 or long64'),
    imageModes,
    'long64',
  )
  const load = address('load', values.text('load')) ?? usage('--image wants --load ADDR')
  const entry = address('entry', values.text('entry')) ?? load
  return { image: { bytes: readInput('--image', path), load, entry, mode } }
}

export function readSizes(values: Values): Pick<MachineOptions, 'memory' | 'smp' | 'cpu'> {
  return given({ memory: size('memory', values.text('memory')), smp: count('smp', values.text('smp')), cpu: values.text('cpu') })
}
