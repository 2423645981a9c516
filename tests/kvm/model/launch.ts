/** The model's launch commands: SEV, SEV-ES, SNP (sev_mem_enc_ioctl) and TDX (tdx_vm_ioctl, tdx_vcpu_ioctl). */
import { SEV_COMMAND, TDX_COMMAND } from 'cloister'
import { type Ask, type ModelVcpu, type ModelVm, no, OK, served, TOP, u16, u32, u64, u8, UNKNOWN, type Verdict } from './state.ts'

export function launchCommand(vm: ModelVm, ask: Ask): Verdict {
  if (vm.type === 'tdx') return tdxVm(vm, ask)
  return sevCommand(vm, ask)
}

const MIRRORED: readonly number[] = [
  SEV_COMMAND.KVM_SEV_LAUNCH_UPDATE_VMSA,
  SEV_COMMAND.KVM_SEV_GUEST_STATUS,
  SEV_COMMAND.KVM_SEV_DBG_DECRYPT,
  SEV_COMMAND.KVM_SEV_DBG_ENCRYPT,
]

function sevCommand(vm: ModelVm, ask: Ask): Verdict {
  const b = ask.bytes as Uint8Array
  const [id, data] = [u32(b, 0), u64(b, 8)]
  if (vm.mirror) return MIRRORED.includes(id) ? UNKNOWN : no('EINVAL')
  if (vm.type === 'snp' && vm.init && id < 100) return no('EPERM')
  const isSev = ask.kind(u32(b, 20) | 0) === 'sev'
  const at = (n: number): Uint8Array | null => ask.read(data, n)
  /** Commands of a launch under way: who may ask, then the firmware's states. */
  const inState = (states: readonly number[], after?: () => void): Verdict =>
    vm.launch === null ? UNKNOWN : vm.launch === 0 ? no('EBADF') : states.includes(vm.launch) ? (after ? served(after) : OK) : no('EIO')
  switch (id) {
    case SEV_COMMAND.KVM_SEV_INIT:
    case SEV_COMMAND.KVM_SEV_ES_INIT: {
      const es = id === SEV_COMMAND.KVM_SEV_ES_INIT
      const legacy = vm.type === 'sev-legacy' || vm.type === 'sev-es-legacy' || vm.type === 'default'
      if (!legacy || vm.order.length > 0 || vm.init) return no('EINVAL')
      // The model's VM has the type that its own init command gives it.
      if (vm.type === 'default' || es !== (vm.type === 'sev-es-legacy')) return { want: 'ok', effect: () => (vm.dead = true) }
      return served(() => (vm.init = true))
    }
    case SEV_COMMAND.KVM_SEV_INIT2: {
      if ((vm.type !== 'sev' && vm.type !== 'sev-es' && vm.type !== 'snp') || vm.init) return no('EINVAL')
      const p = at(48)
      if (p === null) return no('EFAULT')
      const es = vm.type !== 'sev'
      if (vm.order.length > 0 || u32(p, 8) !== 0) return no('EINVAL')
      // SECURE_TSC (bit 9) for SNP alone; DEBUG_SWAP (bit 5) with encrypted state.
      if ((u64(p, 0) & ~((es ? 1n << 5n : 0n) | (vm.type === 'snp' ? 1n << 9n : 0n))) !== 0n) return no('EINVAL')
      const version = u16(p, 12)
      if (version > 2 || (!es && version !== 0) || (vm.type === 'snp' && version === 1)) return no('EINVAL')
      // Secure TSC changes other answers, which the model does not follow.
      if ((u64(p, 0) & (1n << 9n)) !== 0n) return UNKNOWN
      return served(() => (vm.init = true))
    }
    case SEV_COMMAND.KVM_SEV_LAUNCH_START: {
      if (!vm.sev) return no('ENOTTY')
      const p = at(40)
      if (p === null) return no('EFAULT')
      if (u64(p, 8) !== 0n || u64(p, 24) !== 0n || u32(p, 0) !== 0 || vm.launch !== 0)
        return { want: null, effect: () => (vm.launch = null) }
      if (!isSev) return no('EBADF')
      // ACTIVATE: the ASID's range and bit 2 of the policy must agree.
      const policyEs = (u32(p, 4) & 4) !== 0
      if (u32(p, 4) >>> 16 !== 0 || (u32(p, 4) & 0xffc0) !== 0) return { want: null, effect: () => (vm.launch = null) }
      return policyEs !== vm.sevEs ? no('EIO') : served(() => (vm.launch = 1))
    }
    case SEV_COMMAND.KVM_SEV_LAUNCH_UPDATE_DATA: {
      if (!vm.sev) return no('ENOTTY')
      const p = at(16)
      if (p === null) return no('EFAULT')
      const [address, length] = [u64(p, 0), u32(p, 8)]
      if (length === 0 || address + BigInt(length) > TOP) return no('EINVAL')
      if (ask.read(address, length) === null) return no('ENOMEM')
      // 16-byte granules are the firmware's check.
      return (address & 15n) !== 0n || (length & 15) !== 0 ? UNKNOWN : inState([1])
    }
    case SEV_COMMAND.KVM_SEV_LAUNCH_UPDATE_VMSA: {
      if (!vm.sevEs) return no('ENOTTY')
      // DR7 is the model's only where it saw it set.
      for (const vcpu of vm.order) {
        if (vcpu.debug || vcpu.sealed) return { want: 'EINVAL', failed: () => sealUntil(vm, vcpu) }
        if (vm.launch === null) return UNKNOWN
        if (vcpu.debugregs !== null && (vm.volatile || vcpu.volatile)) return unsure(vm)
        const dr7 = vcpu.debugregs === null ? 0x400n : u64(vcpu.debugregs, 40)
        if ((dr7 & ~0x400n) !== 0n) return { want: 'EINVAL', failed: () => sealUntil(vm, vcpu) }
        if (vm.launch === 0) return no('EBADF')
        if (vm.launch !== 1) return no('EIO')
      }
      return served(() => {
        for (const vcpu of vm.order) seal(vcpu, true)
      })
    }
    case SEV_COMMAND.KVM_SEV_LAUNCH_MEASURE: {
      if (!vm.sev) return no('ENOTTY')
      const p = at(16)
      if (p === null) return no('EFAULT')
      const [address, length] = [u64(p, 0), u32(p, 8)]
      if (length !== 0 && address !== 0n && length > 0x4000) return no('EINVAL')
      if (vm.launch === null) return UNKNOWN
      if (vm.launch === 0) return no('EBADF')
      if (vm.launch !== 1 || length < 48 || address === 0n) return no('EIO')
      // The measurement is taken even where it cannot be handed out.
      return ask.read(address, 48) === null ? { want: 'EFAULT', failed: () => (vm.launch = 2) } : served(() => (vm.launch = 2))
    }
    case SEV_COMMAND.KVM_SEV_LAUNCH_FINISH:
      return vm.sev ? inState([1, 2], () => (vm.launch = 3)) : no('ENOTTY')
    case SEV_COMMAND.KVM_SEV_GUEST_STATUS: {
      if (!vm.sev) return no('ENOTTY')
      const verdict = inState([1, 2, 3])
      return verdict.want === 'ok' && at(12) === null ? no('EFAULT') : verdict
    }
    case SEV_COMMAND.KVM_SEV_SNP_LAUNCH_START: {
      if (!(vm.type === 'snp' && vm.init)) return no('ENOTTY')
      const p = at(64)
      if (p === null) return no('EFAULT')
      if (vm.snp !== 'none' || u16(p, 24) !== 0) return no('EINVAL')
      const policy = u64(p, 0)
      // KVM_SNP_POLICY_MASK_VALID: bits 0-17 and 19-25; bit 17 must be set.
      if ((policy & ~0x3fbffffn) !== 0n || (policy & 0x20000n) === 0n) return no('EINVAL')
      if (!isSev) return no('ENOTTY')
      // The ABI version and the other bits are the firmware's matter.
      if (policy !== 0x30000n) return { want: null, effect: () => (vm.snp = 'started') }
      return served(() => (vm.snp = 'started'))
    }
    case SEV_COMMAND.KVM_SEV_SNP_LAUNCH_UPDATE:
      return snpUpdate(vm, ask, at)
    case SEV_COMMAND.KVM_SEV_SNP_LAUNCH_FINISH: {
      if (!(vm.type === 'snp' && vm.init)) return no('ENOTTY')
      if (vm.snp === 'none') return no('EINVAL')
      const p = at(88)
      if (p === null) return no('EFAULT')
      if (u16(p, 54) !== 0) return no('EINVAL')
      for (const vcpu of vm.order) {
        if (vcpu.debugregs !== null && (vm.volatile || vcpu.volatile)) return unsure(vm)
        const dr7 = vcpu.debugregs === null ? 0x400n : u64(vcpu.debugregs, 40)
        if (vcpu.sealed || vcpu.debug || (dr7 & ~0x400n) !== 0n) return { want: 'EINVAL', failed: () => sealUntil(vm, vcpu, false) }
        // snp_launch_update_vmsa issues its firmware command on the descriptor of this call.
        if (!isSev) return no('EBADF')
        if (vm.snp === 'finished') return no('EIO')
      }
      const all = (): void => {
        for (const vcpu of vm.order) seal(vcpu, false)
      }
      if (u8(p, 16) !== 0) return { want: null, failed: all, effect: () => (all(), (vm.snp = 'finished')) }
      if (vm.snp === 'finished') return { want: 'EIO', failed: all }
      return served(() => {
        all()
        vm.snp = 'finished'
      })
    }
    case SEV_COMMAND.KVM_SEV_SNP_ENABLE_REQ_CERTS:
      return vm.type === 'snp' && vm.init && vm.order.length === 0 ? OK : no('EINVAL')
    // Debugging, secrets, reports and migration: the firmware's and other tests' matter.
    default: {
      const known = Object.values(SEV_COMMAND).includes(id as 0) && ![10, 14, 19].includes(id)
      if (!known) return no('EINVAL')
      if (!vm.sev) return no(id === SEV_COMMAND.KVM_SEV_RECEIVE_UPDATE_DATA ? 'EINVAL' : 'ENOTTY')
      return { want: null, effect: () => (vm.launch = null), failed: () => (vm.launch = vm.launch === 0 ? 0 : null) }
    }
  }
}

/** DR7 is not known: neither is who is sealed afterwards; the comparison of this VM ends. */
function unsure(vm: ModelVm): Verdict {
  const end = (): void => {
    vm.dead = true
  }
  return { want: null, effect: end, failed: end }
}

function seal(vcpu: ModelVcpu, fpu: boolean): void {
  vcpu.sealed = true
  vcpu.confidential = fpu
  vcpu.regs = null
}

/** An update that fails at a vCPU leaves those before it sealed. */
function sealUntil(vm: ModelVm, stop: ModelVcpu, fpu = true): void {
  if (vm.type !== 'snp' && vm.launch !== 1) return
  for (const vcpu of vm.order) {
    if (vcpu === stop) return
    seal(vcpu, fpu)
  }
}

function snpUpdate(vm: ModelVm, ask: Ask, at: (n: number) => Uint8Array | null): Verdict {
  if (!(vm.type === 'snp' && vm.init) || vm.snp === 'none') return no('EINVAL')
  const p = at(64)
  if (p === null) return no('EFAULT')
  const [gfn, address, length, type] = [u64(p, 0), u64(p, 8), u64(p, 16), u8(p, 24)]
  if (length === 0n || (length & 0xfffn) !== 0n || u16(p, 26) !== 0 || ![1, 3, 4, 5, 6].includes(type)) return no('EINVAL')
  if (type !== 3 && (address === 0n || (address & 0xfffn) !== 0n)) return no('EINVAL')
  const gpa = BigInt.asUintN(64, gfn << 12n)
  const slot = [...vm.slots].find(([id, s]) => id >>> 16 === 0 && gpa >= s.gpa && gpa < s.gpa + s.size)?.[1]
  if (slot === undefined || slot.gmem < 0) return no('EINVAL')
  if (!vm.gmems.has(slot.gmem) || type === 5 || type === 6) return UNKNOWN
  // One page: what the model follows.
  if (length !== 0x1000n) return UNKNOWN
  if (!vm.privateFrames.has(gpa >> 12n) || vm.snpPages.has(gpa) || vm.snp === 'finished') return no('EIO')
  if (type !== 3 && ask.read(address, 4096) === null) return no('EIO')
  if (ask.kind(u32(ask.bytes as Uint8Array, 20) | 0) !== 'sev') return no('EIO')
  return {
    want: 'ok',
    effect: () => vm.snpPages.add(gpa),
    // gfn_start and len are advanced in the caller's struct.
    check: () => {
      const after = at(64)
      return after !== null && u64(after, 0) === gfn + 1n && u64(after, 16) === 0n ? null : 'the struct is not advanced'
    },
  }
}

function tdxVm(vm: ModelVm, ask: Ask): Verdict {
  const b = ask.bytes as Uint8Array
  const [id, flags, data] = [u32(b, 0), u32(b, 4), u64(b, 8)]
  if (u64(b, 16) !== 0n) return no('EINVAL')
  switch (id) {
    case TDX_COMMAND.KVM_TDX_CAPABILITIES: {
      if (flags !== 0) return no('EINVAL')
      const header = ask.read(data + 2048n, 8)
      if (header === null) return no('EFAULT')
      return u32(header, 0) === 0 ? no('E2BIG') : UNKNOWN
    }
    case TDX_COMMAND.KVM_TDX_INIT_VM: {
      if (vm.td !== 'uninitialized' || flags !== 0) return no('EINVAL')
      const count = ask.read(data + 256n, 4)
      if (count === null) return no('EFAULT')
      const nent = u32(count, 0)
      if (nent > 256) return no('E2BIG')
      const p = ask.read(data, 264 + nent * 40)
      if (p === null) return no('EFAULT')
      if (p.subarray(160, 256).some((x) => x !== 0) || u32(p, 260) !== 0) return no('EINVAL')
      if (vm.order.length > 0) return no('EBUSY')
      if ((u64(p, 0) & ~(1n << 28n)) !== 0n) return no('EINVAL')
      // The CPUID rules are other tests' matter, but for the table without entries: EAX[23:16] of 0x80000008 is missing.
      if (nent === 0) return no('EINVAL')
      return { want: null, effect: () => (vm.td = 'initialized') }
    }
    case TDX_COMMAND.KVM_TDX_FINALIZE_VM:
      return vm.td !== 'initialized' ? no('EINVAL') : served(() => (vm.td = 'runnable'))
    default:
      return no('EINVAL')
  }
}

/** KVM_MEMORY_ENCRYPT_OP on a vCPU. */
export function vcpuCommand(vm: ModelVm, vcpu: ModelVcpu, ask: Ask): Verdict {
  if (vm.type !== 'tdx') return no('ENOTTY')
  const b = ask.bytes as Uint8Array
  const [id, flags, data] = [u32(b, 0), u32(b, 4), u64(b, 8)]
  if (vm.td !== 'initialized' || u64(b, 16) !== 0n) return no('EINVAL')
  switch (id) {
    case TDX_COMMAND.KVM_TDX_INIT_VCPU:
      if (flags !== 0 || vcpu.tdReady) return no('EINVAL')
      if (vcpu.cpuid === null || !hasX2apic(vcpu.cpuid)) return no('EINVAL')
      return served(() => {
        vcpu.tdReady = true
        vcpu.mpState = 0
      })
    case TDX_COMMAND.KVM_TDX_INIT_MEM_REGION: {
      if (!vcpu.tdReady || (flags & ~1) !== 0) return no('EINVAL')
      const p = ask.read(data, 24)
      if (p === null) return no('EFAULT')
      const [source, gpa, pages] = [u64(p, 0), u64(p, 8), u64(p, 16)]
      if (((source | gpa) & 0xfffn) !== 0n || pages === 0n || source === 0n) return no('EINVAL')
      return UNKNOWN
    }
    case TDX_COMMAND.KVM_TDX_GET_CPUID:
      return flags !== 0 ? no('EINVAL') : UNKNOWN
    default:
      return no('EINVAL')
  }
}

/** CPUID 1 ECX bit 21 in a struct kvm_cpuid2's entries. */
function hasX2apic(entries: Uint8Array): boolean {
  for (let at = 0; at + 40 <= entries.length; at += 40) if (u32(entries, at) === 1) return ((u32(entries, at + 20) >>> 21) & 1) === 1
  return false
}
