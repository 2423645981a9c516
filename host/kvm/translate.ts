/**
 * KVM_TRANSLATE (arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl_translate, mmu/paging_tmpl.h walk_addr): KVM's walk of the guest's page
 * tables for a supervisor read, in the paging mode that the vCPU is in. It reads what the host can read, so of an encrypted
 * guest ciphertext, and sets accessed bits as it goes.
 */
import { CPU_CR0, CPU_CR3, CPU_CR4, CPU_EFER, CPU_PKRU, STAGING } from '../generated/layout.ts'
import { CPUID_ENTRY_SIZE } from '../cpuid/entries.ts'
import { viewOf } from './dispatch.ts'
import type { VcpuFd } from './vcpu.ts'

const NONE = 0xffffffffffffffffn
const CR0_PG = 1n << 31n
const CR4 = { PSE: 0x10n, PAE: 0x20n, LA57: 0x1000n, SMAP: 0x200000n, PKE: 0x400000n } as const
const EFER = { LMA: 0x400n, NXE: 0x800n } as const
const RFLAGS_AC = 1n << 18n
const PTE = { P: 1n, U: 4n, A: 0x20n, PS: 0x80n, NX: 1n << 63n } as const
const ADDRESS = 0x000ffffffffff000n

interface Mode {
  /** Levels, bits of index per level, bytes per entry. */
  readonly levels: number
  readonly bits: number
  readonly size: 4 | 8
  readonly long: boolean
}

function modeOf(cr4: bigint, efer: bigint): Mode {
  if ((efer & EFER.LMA) !== 0n) return { levels: (cr4 & CR4.LA57) !== 0n ? 5 : 4, bits: 9, size: 8, long: true }
  if ((cr4 & CR4.PAE) !== 0n) return { levels: 3, bits: 9, size: 8, long: false }
  return { levels: 2, bits: 10, size: 4, long: false }
}

/** EAX or EDX of an extended leaf of the guest's CPUID. */
function cpuidWord(vcpu: VcpuFd, leaf: number, at: number): number | null {
  const view = viewOf(vcpu.cpuid)
  for (let i = 0; i < vcpu.cpuid.length; i += CPUID_ENTRY_SIZE) if (view.getUint32(i, true) === leaf) return view.getUint32(i + at, true)
  return null
}

/** MAXPHYADDR; 36 without the leaf (cpuid_query_maxphyaddr). */
function physicalBits(vcpu: VcpuFd): bigint {
  return BigInt((cpuidWord(vcpu, 0x80000008, 12) ?? 36) & 0xff)
}

/** Bits that must be zero (__reset_rsvds_bits_mask), of an entry at `level`. */
function reserved(vcpu: VcpuFd, mode: Mode, level: number, leaf: boolean, efer: bigint): bigint {
  if (mode.size === 4) return leaf && level === 2 ? 0x3e0000n : 0n // PSE-36 with 36 bits, whatever the processor has
  const beyond = ((1n << 52n) - 1n) & ~((1n << physicalBits(vcpu)) - 1n)
  const nx = (efer & EFER.NXE) === 0n ? PTE.NX : 0n
  if (!mode.long) {
    if (level === 3) return PTE.NX | 0x7ff0000000000000n | beyond | 0x1e6n
    return nx | 0x7ff0000000000000n | beyond | (level === 2 && leaf ? 0x1fe000n : 0n)
  }
  if (level >= 4) return nx | beyond | PTE.PS | 0x100n
  if (level === 3) return nx | beyond | (leaf ? 0x3fffe000n | (hugePages(vcpu) ? 0n : PTE.PS) : 0x100n)
  return nx | beyond | (level === 2 && leaf ? 0x1fe000n : 0n)
}

function hugePages(vcpu: VcpuFd): boolean {
  return ((cpuidWord(vcpu, 0x80000001, 24) ?? 0) & (1 << 26)) !== 0
}

/** The guest-physical address, or all ones. */
export function translate(vcpu: VcpuFd, linear: bigint): bigint {
  const { core } = vcpu.kernel
  const register = (at: number): bigint => vcpu.cpu.getBigUint64(at, true)
  const [cr0, cr3, cr4, efer] = [register(CPU_CR0), register(CPU_CR3), register(CPU_CR4), register(CPU_EFER)]
  if ((cr0 & CR0_PG) === 0n) return linear
  const mode = modeOf(cr4, efer)
  let table = mode.long ? cr3 & ADDRESS : mode.size === 8 ? cr3 & 0xffffffe0n : cr3 & 0xfffff000n
  let user = true
  for (let level = mode.levels; ; level--) {
    const shift = BigInt(12 + (level - 1) * mode.bits)
    const width = !mode.long && mode.size === 8 && level === 3 ? 2 : mode.bits
    const address = table + ((linear >> shift) & ((1n << BigInt(width)) - 1n)) * BigInt(mode.size)
    if (core.call.gpaRead(vcpu.vm.address, address, STAGING, mode.size) === 0) return NONE
    const entry = mode.size === 8 ? core.stagingView.getBigUint64(0, true) : BigInt(core.stagingView.getUint32(0, true))
    if ((entry & PTE.P) === 0n) return NONE
    const pdpte = !mode.long && level === 3 && mode.size === 8
    const large = level > 1 && !pdpte && (entry & PTE.PS) !== 0n && (mode.size === 8 ? level <= 3 : (cr4 & CR4.PSE) !== 0n)
    const leaf = level === 1 || large
    if ((entry & reserved(vcpu, mode, level, leaf, efer)) !== 0n) return NONE
    if (!pdpte) user &&= (entry & PTE.U) !== 0n
    if (leaf && !allowed(vcpu, user, entry, cr4, mode)) return NONE
    if (!pdpte && (entry & PTE.A) === 0n) {
      core.stagingView.setUint8(0, Number(entry & 0xffn) | Number(PTE.A))
      core.call.gpaWrite(vcpu.vm.address, address, STAGING, 1)
    }
    if (leaf) {
      const offset = (1n << shift) - 1n
      // PSE-36: bits 16:13 of a 4 MiB entry are 35:32 of the address.
      const base = mode.size === 4 && large ? (entry & 0xffc00000n) | ((entry & 0x1e000n) << 19n) : entry & ADDRESS & ~offset
      return base | (linear & offset)
    }
    table = entry & (mode.size === 8 ? ADDRESS : 0xfffff000n)
  }
}

/** permission_fault of a supervisor read: SMAP (whatever the CPL), and the key of a user page. */
function allowed(vcpu: VcpuFd, user: boolean, entry: bigint, cr4: bigint, mode: Mode): boolean {
  if (!user) return true
  if ((cr4 & CR4.SMAP) !== 0n && (vcpu.kernel.core.call.cpuGetFlags(vcpu.s) & RFLAGS_AC) === 0n) return false
  if (!mode.long || (cr4 & CR4.PKE) === 0n) return true
  const key = Number((entry >> 59n) & 15n)
  return ((vcpu.cpu.getUint32(CPU_PKRU, true) >>> (key * 2)) & 1) === 0
}
