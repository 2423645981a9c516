/** Structs of KVM ioctls by field name, as strace (or a hand) writes them (uapi/linux/kvm.h, asm/kvm.h). */
import { CAP, ERRNO, SEV_COMMAND, TDX_COMMAND } from '../generated/kvm-abi.ts'
import { isStruct, type Struct, type Value } from './log.ts'

type Field = readonly [offset: number, size: 1 | 2 | 4 | 8]

const FIELDS: Readonly<Record<string, Readonly<Record<string, Field>>>> = {
  KVM_SET_USER_MEMORY_REGION: { slot: [0, 4], flags: [4, 4], guest_phys_addr: [8, 8], memory_size: [16, 8], userspace_addr: [24, 8] },
  KVM_SET_USER_MEMORY_REGION2: {
    slot: [0, 4],
    flags: [4, 4],
    guest_phys_addr: [8, 8],
    memory_size: [16, 8],
    userspace_addr: [24, 8],
    guest_memfd_offset: [32, 8],
    guest_memfd: [40, 4],
  },
  KVM_SET_MEMORY_ATTRIBUTES: { address: [0, 8], size: [8, 8], attributes: [16, 8], flags: [24, 8] },
  KVM_CREATE_GUEST_MEMFD: { size: [0, 8], flags: [8, 8] },
  KVM_PRE_FAULT_MEMORY: { gpa: [0, 8], size: [8, 8], flags: [16, 8] },
  KVM_ENABLE_CAP: { cap: [0, 4], flags: [4, 4] },
  KVM_MEMORY_ENCRYPT_OP: { id: [0, 4], flags: [4, 4], data: [8, 8], error: [16, 4], sev_fd: [20, 4] },
  KVM_MEMORY_ENCRYPT_REG_REGION: { addr: [0, 8], size: [8, 8] },
  KVM_MEMORY_ENCRYPT_UNREG_REGION: { addr: [0, 8], size: [8, 8] },
  KVM_IRQFD: { fd: [0, 4], gsi: [4, 4], flags: [8, 4], resamplefd: [12, 4] },
  KVM_IOEVENTFD: { datamatch: [0, 8], addr: [8, 8], len: [16, 4], fd: [20, 4], flags: [24, 4] },
  KVM_IRQ_LINE: { irq: [0, 4], level: [4, 4] },
  KVM_IRQ_LINE_STATUS: { irq: [0, 4], level: [4, 4] },
  KVM_SIGNAL_MSI: { address_lo: [0, 4], address_hi: [4, 4], data: [8, 4], flags: [12, 4], devid: [16, 4] },
  KVM_SET_MP_STATE: { mp_state: [0, 4] },
  KVM_INTERRUPT: { irq: [0, 4] },
  KVM_CREATE_PIT2: { flags: [0, 4] },
  KVM_CREATE_DEVICE: { type: [0, 4], fd: [4, 4], flags: [8, 4] },
  KVM_SET_DEVICE_ATTR: { flags: [0, 4], group: [4, 4], attr: [8, 8], addr: [16, 8] },
  KVM_GET_DEVICE_ATTR: { flags: [0, 4], group: [4, 4], attr: [8, 8], addr: [16, 8] },
  KVM_HAS_DEVICE_ATTR: { flags: [0, 4], group: [4, 4], attr: [8, 8], addr: [16, 8] },
  KVM_SET_GUEST_DEBUG: { control: [0, 4] },
  KVM_SET_REGS: Object.fromEntries(
    'rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags'.split(' ').map((name, i) => [name, [i * 8, 8] as const]),
  ),
  KVM_GET_DIRTY_LOG: { slot: [0, 4], dirty_bitmap: [8, 8] },
  KVM_SET_IDENTITY_MAP_ADDR: { '0': [0, 8] },
}

/** Words that strace prints for numbers. */
const WORDS: Readonly<Record<string, number>> = {
  ...CAP,
  ...SEV_COMMAND,
  ...TDX_COMMAND,
  KVM_MEM_LOG_DIRTY_PAGES: 1,
  KVM_MEM_READONLY: 2,
  KVM_MEM_GUEST_MEMFD: 4,
  KVM_MEMORY_ATTRIBUTE_PRIVATE: 8,
  KVM_MP_STATE_RUNNABLE: 0,
  KVM_MP_STATE_UNINITIALIZED: 1,
  KVM_MP_STATE_INIT_RECEIVED: 2,
  KVM_MP_STATE_HALTED: 3,
  KVM_MP_STATE_SIPI_RECEIVED: 4,
  KVM_MP_STATE_AP_RESET_HOLD: 9,
  KVM_IRQFD_FLAG_DEASSIGN: 1,
  KVM_IRQFD_FLAG_RESAMPLE: 2,
  KVM_GUESTDBG_ENABLE: 1,
  KVM_GUESTDBG_SINGLESTEP: 2,
  KVM_GUESTDBG_USE_SW_BP: 0x10000,
  KVM_GUESTDBG_USE_HW_BP: 0x20000,
  KVM_DEV_TYPE_VFIO: 4,
  NULL: 0,
}

export const knownErrno = (name: string): boolean => name in ERRNO

/** The number behind a word, flags joined with |, or a number; null if it is not one. */
export function scalar(value: Value | undefined): bigint | null {
  if (typeof value === 'number' || typeof value === 'bigint') return BigInt(value)
  if (typeof value !== 'string') return null
  let sum = 0n
  for (const part of value.split('|')) {
    const word = part.trim()
    const number = /^(0x[0-9a-f]+|\d+)$/i.test(word) ? BigInt(word) : word in WORDS ? BigInt(WORDS[word] as number) : null
    if (number === null) return null
    sum |= number
  }
  return sum
}

/** Whether `name` can be encoded from fields. */
export const hasFields = (name: string): boolean => name in FIELDS

/** Bytes of a struct; `translate` turns addresses and descriptors of the log into ours. */
export function encode(name: string, size: number, struct: Struct, translate: (field: string, value: bigint) => bigint): Uint8Array {
  const bytes = new Uint8Array(size)
  const view = new DataView(bytes.buffer)
  for (const [field, [offset, width]] of Object.entries(FIELDS[name] ?? {})) {
    const given = scalar(struct.fields.get(field))
    if (given === null || offset + width > size) continue
    const value = BigInt.asUintN(64, translate(field, given))
    if (width === 8) view.setBigUint64(offset, value, true)
    else if (width === 4) view.setUint32(offset, Number(BigInt.asUintN(32, value)), true)
    else if (width === 2) view.setUint16(offset, Number(BigInt.asUintN(16, value)), true)
    else view.setUint8(offset, Number(value & 0xffn))
  }
  if (name === 'KVM_ENABLE_CAP') {
    const args = struct.fields.get('args')
    const list = Array.isArray(args) ? (args as readonly Value[]) : []
    list.slice(0, 4).forEach((arg, i) => {
      view.setBigUint64(8 + i * 8, BigInt.asUintN(64, translate('arg', scalar(arg) ?? 0n)), true)
    })
  }
  return bytes
}

export const fieldOf = (value: Value | undefined, name: string): bigint | null => (isStruct(value) ? scalar(value.fields.get(name)) : null)

/** Bytes of the struct that a request code takes; 0 for a scalar (uapi/asm-generic/ioctl.h). */
export const structSize = (code: number): number => (code >>> 30 === 0 ? 0 : (code >>> 16) & 0x3fff)
