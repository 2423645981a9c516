/**
 * System management mode as KVM gives it to a guest: entry on an SMI, RSM, and the state-save area at SMBASE + 0xfe00 in KVM's
 * layouts (Linux 7.3 arch/x86/kvm/smm.h: AMD64's for a guest with long mode, else that of the P6). I/O restart and auto-HLT
 * restart do not exist there. Owns VKVM_SMM, VKVM_SMI_PENDING, CPU_SMBASE and CPU_SMI_COUNT.
 */
import { updateDebug } from '../cpu/debug'
import { writeCr0, writeCr3, writeCr4, writeDr, writeEfer } from '../cpu/control'
import { F_80000001_EDX, feature } from '../cpu/features'
import { getFlags, setFlags } from '../cpu/flags'
import { segment, setShadow, updateMode } from '../cpu/mode'
import {
  CPU_CPL,
  CPU_CR0,
  CPU_CR3,
  CPU_CR4,
  CPU_DR6,
  CPU_DR7,
  CPU_EFER,
  CPU_GPR,
  CPU_HALTED,
  CPU_INTERRUPT_SHADOW,
  CPU_NMI_BLOCKED,
  CPU_RIP,
  CPU_SMBASE,
  CPU_SMI_COUNT,
  EVENT_SMI,
  SEG_ATTRIB,
  SEG_BASE,
  SEG_CS,
  SEG_DS,
  SEG_ES,
  SEG_FS,
  SEG_GDTR,
  SEG_GS,
  SEG_IDTR,
  SEG_LDTR,
  SEG_LIMIT,
  SEG_SELECTOR,
  SEG_SS,
  SEG_TR,
  VCPU_FPU,
  VKVM_GHCB_RAX,
  VKVM_GHCB_RBX,
  VKVM_GHCB_RCX,
  VKVM_GHCB_RDX,
  VKVM_GHCB_RSI,
  VKVM_PROTECTED,
  VKVM_SMI_PENDING,
  VKVM_SMM,
} from '../generated/layout'
import { CR4_PAE, CR4_PCIDE, EFER_LMA } from '../generated/registers'
import { gpaRead, gpaWrite } from '../memory/physical'
import { slotSpace } from '../memory/slots'
import { flushTlb } from '../memory/tlb'
import { isSevEs, signal, vkvm, vmOf } from './state'

const IN_SMM: u32 = 1
const INSIDE_NMI: u32 = 2
const SAVE_OFFSET: u64 = 0xfe00
const SAVE_SIZE: u32 = 512
const LM: u32 = 29
const CR0_CLEARED: u64 = 0x8000000d // PG, TS, EM, PE

export function inSmm(s: usize): bool {
  return (load<u32>(vkvm(s), VKVM_SMM) & IN_SMM) != 0
}

/** The memory slots that accesses of this vCPU see. */
export function enterSpace(s: usize): void {
  slotSpace(inSmm(s) ? 1 : 0)
}

/** kvm_smm_changed. The host uses it for KVM_SET_VCPU_EVENTS. */
export function smmChanged(s: usize, on: bool): void {
  const k = vkvm(s)
  if (on) store<u32>(k, load<u32>(k, VKVM_SMM) | IN_SMM, VKVM_SMM)
  else {
    store<u32>(k, 0, VKVM_SMM)
    signal(s, load<u32>(k, VKVM_SMI_PENDING) != 0 ? EVENT_SMI : 0) // a latched INIT or SMI
  }
  flushTlb(s)
}

/** KVM_SMI and SMIs by IPI: one waits at most. False: this VM has no SMM. */
export function queueSmi(s: usize): bool {
  if (isSevEs(s)) return false
  store<u32>(vkvm(s), 1, VKVM_SMI_PENDING)
  signal(s, EVENT_SMI)
  return true
}

/** An SMI waits and may come in (svm_smi_allowed). */
export function smiDue(s: usize): bool {
  const k = vkvm(s)
  return load<u32>(k, VKVM_SMI_PENDING) != 0 && (load<u32>(k, VKVM_SMM) & IN_SMM) == 0
}

/** kvm_smm: attributes as in the upper half of a descriptor, shifted right by 8: ours without AVL..G at their place. */
function wideAttributes(d: usize): u32 {
  const a = <u32>load<u16>(d, SEG_ATTRIB)
  const present = (a & 0x8000) != 0 ? a & 0x7f : a & 0xff
  const granular: u32 = load<u32>(d, SEG_LIMIT) > 0xfffff ? 0x8000 : 0
  return present | ((a & 0x700) << 4) | granular
}

function setAttributes(d: usize, wide: u32): void {
  const unusable: u32 = (wide & 0x80) == 0 ? 0x8000 : 0
  store<u16>(d, <u16>((wide & 0xff) | ((wide >> 4) & 0xf00) | unusable), SEG_ATTRIB)
}

function save64(s: usize, n: u32, to: usize): void {
  const d = segment(s, n)
  store<u16>(to, load<u16>(d, SEG_SELECTOR))
  store<u16>(to, <u16>wideAttributes(d), 2)
  store<u32>(to, load<u32>(d, SEG_LIMIT), 4)
  store<u64>(to, load<u64>(d, SEG_BASE), 8)
}

function load64(s: usize, n: u32, from: usize): void {
  const d = segment(s, n)
  store<u16>(d, load<u16>(from), SEG_SELECTOR)
  setAttributes(d, <u32>load<u16>(from, 2))
  store<u32>(d, load<u32>(from, 4), SEG_LIMIT)
  store<u64>(d, load<u64>(from, 8), SEG_BASE)
}

/** Rows of 12 bytes: flags, limit, base; selectors lie together elsewhere. */
function save32(s: usize, n: u32, to: usize, selector: usize): void {
  const d = segment(s, n)
  store<u32>(to, wideAttributes(d) << 8)
  store<u32>(to, load<u32>(d, SEG_LIMIT), 4)
  store<u32>(to, <u32>load<u64>(d, SEG_BASE), 8)
  store<u32>(selector, <u32>load<u16>(d, SEG_SELECTOR))
}

function load32(s: usize, n: u32, from: usize, selector: usize): void {
  const d = segment(s, n)
  store<u16>(d, <u16>load<u32>(selector), SEG_SELECTOR)
  setAttributes(d, load<u32>(from) >> 8)
  store<u32>(d, load<u32>(from, 4), SEG_LIMIT)
  store<u64>(d, <u64>load<u32>(from, 8), SEG_BASE)
}

/** Descriptor tables have base and limit only. */
function saveTable32(s: usize, n: u32, to: usize): void {
  store<u32>(to, load<u32>(segment(s, n), SEG_LIMIT) & 0xffff, 4)
  store<u32>(to, <u32>load<u64>(segment(s, n), SEG_BASE), 8)
}

function loadTable32(s: usize, n: u32, from: usize): void {
  store<u32>(segment(s, n), load<u32>(from, 4) & 0xffff, SEG_LIMIT)
  store<u64>(segment(s, n), <u64>load<u32>(from, 8), SEG_BASE)
}

function saveTable64(s: usize, n: u32, to: usize): void {
  store<u32>(to, load<u32>(segment(s, n), SEG_LIMIT) & 0xffff, 4)
  store<u64>(to, load<u64>(segment(s, n), SEG_BASE), 8)
}

function loadTable64(s: usize, n: u32, from: usize): void {
  store<u32>(segment(s, n), load<u32>(from, 4) & 0xffff, SEG_LIMIT)
  store<u64>(segment(s, n), load<u64>(from, 8), SEG_BASE)
}

/** struct kvm_smram_state_64; offsets from SMBASE + 0xfe00. */
function saveState64(s: usize, m: usize): void {
  save64(s, SEG_ES, m)
  save64(s, SEG_CS, m + 0x10)
  save64(s, SEG_SS, m + 0x20)
  save64(s, SEG_DS, m + 0x30)
  save64(s, SEG_FS, m + 0x40)
  save64(s, SEG_GS, m + 0x50)
  saveTable64(s, SEG_GDTR, m + 0x60)
  save64(s, SEG_LDTR, m + 0x70)
  saveTable64(s, SEG_IDTR, m + 0x80)
  save64(s, SEG_TR, m + 0x90)
  store<u8>(m, load<u32>(s, CPU_INTERRUPT_SHADOW) != 0 ? 3 : 0, 0xcb)
  store<u64>(m, load<u64>(s, CPU_EFER), 0xd0)
  store<u32>(m, 0x00020064, 0xfc)
  store<u32>(m, <u32>load<u64>(s, CPU_SMBASE), 0x100)
  store<u64>(m, load<u64>(s, CPU_CR4), 0x148)
  store<u64>(m, load<u64>(s, CPU_CR3), 0x150)
  store<u64>(m, load<u64>(s, CPU_CR0), 0x158)
  store<u64>(m, load<u64>(s, CPU_DR7), 0x160)
  store<u64>(m, load<u64>(s, CPU_DR6), 0x168)
  store<u64>(m, getFlags(s), 0x170)
  store<u64>(m, load<u64>(s, CPU_RIP), 0x178)
  for (let i: usize = 0; i < 16; i++) store<u64>(m + 0x180 + ((15 - i) << 3), load<u64>(s + CPU_GPR + (i << 3)))
}

/**
 * The state of a sealed vCPU is not KVM's to save or set, although userspace can force an SMI on it (KVM_SET_VCPU_EVENTS):
 * the area holds KVM's copies, which are what the last GHCB exit gave, and the guest goes on in address space 1.
 */
function saveCopies(s: usize, m: usize): void {
  const k = vkvm(s)
  const gprs = m + 0x180
  store<u32>(m, 0x00020064, 0xfc)
  store<u32>(m, <u32>load<u64>(s, CPU_SMBASE), 0x100)
  store<u64>(gprs, load<u64>(k, VKVM_GHCB_RAX), 15 * 8)
  store<u64>(gprs, load<u64>(k, VKVM_GHCB_RCX), 14 * 8)
  store<u64>(gprs, load<u64>(k, VKVM_GHCB_RDX), 13 * 8)
  store<u64>(gprs, load<u64>(k, VKVM_GHCB_RBX), 12 * 8)
  store<u64>(gprs, load<u64>(k, VKVM_GHCB_RSI), 9 * 8)
}

/** struct kvm_smram_state_32. */
function saveState32(s: usize, m: usize): void {
  store<u32>(m, <u32>load<u64>(s, CPU_SMBASE), 0xf8)
  store<u32>(m, 0x00020000, 0xfc)
  store<u32>(m, <u32>load<u64>(s, CPU_CR4), 0x114)
  store<u8>(m, load<u32>(s, CPU_INTERRUPT_SHADOW) != 0 ? 3 : 0, 0x11a)
  save32(s, SEG_DS, m + 0x12c, m + 0x1b4)
  save32(s, SEG_FS, m + 0x138, m + 0x1b8)
  save32(s, SEG_GS, m + 0x144, m + 0x1bc)
  saveTable32(s, SEG_IDTR, m + 0x150)
  save32(s, SEG_TR, m + 0x15c, m + 0x1c4)
  saveTable32(s, SEG_GDTR, m + 0x16c)
  save32(s, SEG_LDTR, m + 0x178, m + 0x1c0)
  save32(s, SEG_ES, m + 0x184, m + 0x1a8)
  save32(s, SEG_CS, m + 0x190, m + 0x1ac)
  save32(s, SEG_SS, m + 0x19c, m + 0x1b0)
  store<u32>(m, <u32>load<u64>(s, CPU_DR7), 0x1c8)
  store<u32>(m, <u32>load<u64>(s, CPU_DR6), 0x1cc)
  for (let i: usize = 0; i < 8; i++) store<u32>(m + 0x1d0 + (i << 2), <u32>load<u64>(s + CPU_GPR + (i << 3)))
  store<u32>(m, <u32>load<u64>(s, CPU_RIP), 0x1f0)
  store<u32>(m, <u32>getFlags(s), 0x1f4)
  store<u32>(m, <u32>load<u64>(s, CPU_CR3), 0x1f8)
  store<u32>(m, <u32>load<u64>(s, CPU_CR0), 0x1fc)
}

function flatSegment(s: usize, n: u32, selector: u32, base: u64): void {
  const d = segment(s, n)
  store<u16>(d, <u16>selector, SEG_SELECTOR)
  store<u64>(d, base, SEG_BASE)
  store<u32>(d, 0xffffffff, SEG_LIMIT)
  store<u16>(d, 0x893, SEG_ATTRIB) // G, present, writable data
}

/** enter_smm. False: the save area is not in writable memory, which kills the VM. */
export function enterSmm(s: usize): bool {
  const k = vkvm(s)
  const base = load<u64>(s, CPU_SMBASE)
  const wide = feature(s, F_80000001_EDX, LM)
  const area = s + VCPU_FPU
  store<u32>(k, 0, VKVM_SMI_PENDING)
  store<u64>(s, load<u64>(s, CPU_SMI_COUNT) + 1, CPU_SMI_COUNT)
  if (load<u32>(s, CPU_HALTED) == 3) store<u32>(s, 0, CPU_HALTED)
  memory.fill(area, 0, <usize>SAVE_SIZE)
  if (load<u32>(k, VKVM_PROTECTED)) {
    saveCopies(s, area)
    smmChanged(s, true)
    enterSpace(s)
    return gpaWrite(vmOf(s), base + SAVE_OFFSET, area, SAVE_SIZE)
  }
  if (wide) saveState64(s, area)
  else saveState32(s, area)
  smmChanged(s, true)
  enterSpace(s)
  if (!gpaWrite(vmOf(s), base + SAVE_OFFSET, area, SAVE_SIZE)) return false
  if (load<u32>(s, CPU_NMI_BLOCKED) != 0) store<u32>(k, IN_SMM | INSIDE_NMI, VKVM_SMM)
  else store<u32>(s, 1, CPU_NMI_BLOCKED)
  setFlags(s, 2)
  store<u64>(s, 0x8000, CPU_RIP)
  store<u32>(s, 0, CPU_INTERRUPT_SHADOW)
  store<u64>(s, load<u64>(s, CPU_CR0) & ~CR0_CLEARED, CPU_CR0)
  store<u64>(s, 0, CPU_CR4)
  store<u64>(segment(s, SEG_IDTR), 0, SEG_BASE)
  store<u32>(segment(s, SEG_IDTR), 0, SEG_LIMIT)
  store<u64>(s, 0x400, CPU_DR7)
  flatSegment(s, SEG_CS, <u32>(base >> 4) & 0xffff, base)
  for (let n: u32 = 0; n < 6; n++) if (n != SEG_CS) flatSegment(s, n, 0, 0)
  store<u32>(s, 0, CPU_CPL)
  if (wide) store<u64>(s, 0, CPU_EFER)
  updateDebug(s)
  updateMode(s)
  return true
}

/** rsm_enter_protected_mode: PCIDE can only be set in long mode, and with CR3[11:0] clear. */
function controls(s: usize, cr0: u64, cr3: u64, cr4: u64): bool {
  let pcid: u64 = 0
  if (cr4 & CR4_PCIDE) {
    pcid = cr3 & 0xfff
    cr3 &= ~(<u64>0xfff)
  }
  if (!writeCr3(s, cr3) || !writeCr4(s, cr4 & ~CR4_PCIDE) || !writeCr0(s, cr0)) return false
  if ((cr4 & CR4_PCIDE) == 0) return true
  return writeCr4(s, cr4) && (pcid == 0 || writeCr3(s, cr3 | pcid))
}

function restore64(s: usize, m: usize): bool {
  for (let i: usize = 0; i < 16; i++) store<u64>(s + CPU_GPR + (i << 3), load<u64>(m + 0x180 + ((15 - i) << 3)))
  store<u64>(s, load<u64>(m, 0x178), CPU_RIP)
  setFlags(s, load<u64>(m, 0x170) | 2)
  if (!writeDr(s, 6, load<u64>(m, 0x168)) || !writeDr(s, 7, load<u64>(m, 0x160))) return false
  store<u64>(s, <u64>load<u32>(m, 0x100), CPU_SMBASE)
  if (!writeEfer(s, load<u64>(m, 0xd0) & ~EFER_LMA)) return false
  load64(s, SEG_TR, m + 0x90)
  loadTable64(s, SEG_IDTR, m + 0x80)
  load64(s, SEG_LDTR, m + 0x70)
  loadTable64(s, SEG_GDTR, m + 0x60)
  if (!controls(s, load<u64>(m, 0x158), load<u64>(m, 0x150), load<u64>(m, 0x148))) return false
  load64(s, SEG_ES, m)
  load64(s, SEG_CS, m + 0x10)
  load64(s, SEG_SS, m + 0x20)
  load64(s, SEG_DS, m + 0x30)
  load64(s, SEG_FS, m + 0x40)
  load64(s, SEG_GS, m + 0x50)
  setShadow(s, load<u8>(m, 0xcb) != 0 ? 2 : 0)
  return true
}

function restore32(s: usize, m: usize): bool {
  for (let i: usize = 0; i < 8; i++) store<u64>(s + CPU_GPR + (i << 3), <u64>load<u32>(m + 0x1d0 + (i << 2)))
  store<u64>(s, <u64>load<u32>(m, 0x1f0), CPU_RIP)
  setFlags(s, <u64>load<u32>(m, 0x1f4) | 2)
  if (!writeDr(s, 6, <u64>load<u32>(m, 0x1cc)) || !writeDr(s, 7, <u64>load<u32>(m, 0x1c8))) return false
  load32(s, SEG_TR, m + 0x15c, m + 0x1c4)
  load32(s, SEG_LDTR, m + 0x178, m + 0x1c0)
  loadTable32(s, SEG_GDTR, m + 0x16c)
  loadTable32(s, SEG_IDTR, m + 0x150)
  load32(s, SEG_ES, m + 0x184, m + 0x1a8)
  load32(s, SEG_CS, m + 0x190, m + 0x1ac)
  load32(s, SEG_SS, m + 0x19c, m + 0x1b0)
  load32(s, SEG_DS, m + 0x12c, m + 0x1b4)
  load32(s, SEG_FS, m + 0x138, m + 0x1b8)
  load32(s, SEG_GS, m + 0x144, m + 0x1bc)
  store<u64>(s, <u64>load<u32>(m, 0xf8), CPU_SMBASE)
  if (!controls(s, <u64>load<u32>(m, 0x1fc), <u64>load<u32>(m, 0x1f8), <u64>load<u32>(m, 0x114))) return false
  setShadow(s, load<u8>(m, 0x11a) != 0 ? 2 : 0)
  return true
}

/** RSM (emulator_leave_smm). False: a save area that cannot be read or loaded, which shuts the vCPU down. */
export function leaveSmm(s: usize): bool {
  const k = vkvm(s)
  const area = s + VCPU_FPU
  const wide = feature(s, F_80000001_EDX, LM)
  if (!gpaRead(vmOf(s), load<u64>(s, CPU_SMBASE) + SAVE_OFFSET, area, SAVE_SIZE)) return false
  if ((load<u32>(k, VKVM_SMM) & INSIDE_NMI) == 0) store<u32>(s, 0, CPU_NMI_BLOCKED)
  smmChanged(s, false)
  enterSpace(s)
  // Back to real mode first, from which CR0, CR3, CR4 and EFER can be loaded whole.
  store<u64>(s, load<u64>(s, CPU_CR0) & ~(<u64>0x80000001), CPU_CR0)
  store<u64>(s, load<u64>(s, CPU_CR4) & ~(CR4_PCIDE | (wide ? CR4_PAE : 0)), CPU_CR4)
  if (wide) {
    const cs = segment(s, SEG_CS)
    store<u16>(cs, 0x89b, SEG_ATTRIB)
    store<u64>(s, 0, CPU_EFER)
  }
  updateMode(s)
  const good = wide ? restore64(s, area) : restore32(s, area)
  store<u32>(s, (<u32>load<u16>(segment(s, SEG_SS), SEG_ATTRIB) >> 5) & 3, CPU_CPL)
  updateDebug(s)
  flushTlb(s)
  updateMode(s)
  return good
}
