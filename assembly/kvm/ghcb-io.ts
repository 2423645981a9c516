/** GHCB events that move data: IOIO (also string I/O) and MMIO, with the scratch area's rules (setup_vmgexit_scratch). */
import {
  GHCB_ERR_INVALID_INPUT,
  GHCB_ERR_INVALID_SCRATCH_AREA,
  GHCB_SHARED_BUFFER,
  GHCB_SHARED_BUFFER_END,
  KVM_EFAULT,
  KVM_EINVAL,
  RUN_MMIO_DATA,
} from '../generated/kvm'
import {
  CPU_RIP,
  PENDING_GHCB_IN,
  PENDING_GHCB_MMIO,
  PENDING_GHCB_OUT,
  PENDING_GHCB_STRING,
  VKVM_BUFFER,
  VKVM_GHCB_ADDRESS,
  VKVM_GHCB_BUFFER,
  VKVM_GHCB_GPA,
  VKVM_GHCB_INFO1,
  VKVM_GHCB_INFO2,
  VKVM_GHCB_LEFT,
  VKVM_GHCB_POS,
  VKVM_GHCB_RAX,
  VKVM_GHCB_SCRATCH,
  VKVM_PENDING,
  VKVM_PIO_COUNT,
  VKVM_PIO_PORT,
  VKVM_PIO_SIZE,
  VM_GHCB_VERSION,
} from '../generated/layout'
import { gpaRead, gpaWrite } from '../memory/physical'
import { exitIo, exitMmio } from './exits'
import { badInput, refuse } from './ghcb'
import { coalescedWrite } from './coalesced'
import { ioeventWrite } from './ioevent'
import { DONE, LEFT } from './ghcb-common'
import { busHas, busMmioRead, busMmioWrite } from './mmio'
import { busRead, busWrite, chargeAccess, inKernelPort, pioData, pollEnd, pollRead, pollWindow } from './pio'
import { runOf, vkvm, vmOf } from './state'

/** GHCB_SCRATCH_AREA_LIMIT: scratch outside the GHCB page (protocol 1 only). */
const SCRATCH_LIMIT: u64 = 16 * 4096
/** More than DONE and LEFT: go on with the operation. */
const READY: u32 = 2

/** Checks the scratch area of `length` bytes and remembers where it is. READY, or DONE/LEFT. */
function scratch(s: usize, length: u64): u32 {
  const k = vkvm(s)
  const begin = load<u64>(k, VKVM_GHCB_SCRATCH)
  const end = begin + length
  if (begin == 0 || end < begin) return badInput(s, GHCB_ERR_INVALID_SCRATCH_AREA)
  const page = load<u64>(k, VKVM_GHCB_GPA)
  if ((begin & 0xfffffffffffff000) == page) {
    if (begin < page + GHCB_SHARED_BUFFER || end > page + GHCB_SHARED_BUFFER_END) return badInput(s, GHCB_ERR_INVALID_SCRATCH_AREA)
  } else {
    if (load<u32>(vmOf(s), VM_GHCB_VERSION) >= 2 || length > SCRATCH_LIMIT) return badInput(s, GHCB_ERR_INVALID_SCRATCH_AREA)
    for (let at: u64 = 0; at < length; at += 4096) {
      const n = length - at < 4096 ? length - at : 4096
      if (!gpaRead(vmOf(s), begin + at, k + VKVM_BUFFER, <u32>n)) return refuse(s, KVM_EFAULT)
    }
  }
  store<u64>(k, begin, VKVM_GHCB_BUFFER)
  store<u32>(k, 0, VKVM_GHCB_POS)
  return READY
}

function fetch(s: usize, to: usize, n: u32): void {
  const k = vkvm(s)
  gpaRead(vmOf(s), load<u64>(k, VKVM_GHCB_BUFFER) + <u64>load<u32>(k, VKVM_GHCB_POS), to, n)
}

function put(s: usize, from: usize, n: u32): void {
  const k = vkvm(s)
  gpaWrite(vmOf(s), load<u64>(k, VKVM_GHCB_BUFFER) + <u64>load<u32>(k, VKVM_GHCB_POS), from, n)
}

/** Merges an IN result into RAX as complete_fast_pio_in does. */
function mergeRax(s: usize, size: u32, value: u32): void {
  const k = vkvm(s)
  const old = load<u64>(k, VKVM_GHCB_RAX)
  store<u64>(
    k,
    size == 1 ? (old & ~(<u64>0xff)) | <u64>(value & 0xff) : size == 2 ? (old & ~(<u64>0xffff)) | <u64>(value & 0xffff) : <u64>value,
    VKVM_GHCB_RAX,
  )
}

/** SVM_EXIT_IOIO. */
export function ghcbIo(s: usize): u32 {
  const k = vkvm(s)
  const info = load<u32>(k, VKVM_GHCB_INFO1)
  const input = (info & 1) != 0
  const size = (info >> 4) & 7
  const port = info >> 16
  if (size == 0) return DONE
  store<u32>(k, port, VKVM_PIO_PORT)
  store<u32>(k, size, VKVM_PIO_SIZE)
  store<u64>(k, input ? 1 : 0, VKVM_GHCB_ADDRESS)
  if (info & 4) {
    const count = load<u64>(k, VKVM_GHCB_INFO2)
    if (count > 0x7fffffff || count * <u64>size > 0x7fffffff) return refuse(s, KVM_EINVAL)
    const ready = scratch(s, count * <u64>size)
    if (ready != READY) return ready
    store<u32>(k, <u32>count, VKVM_GHCB_LEFT)
    pollEnd(s)
    return stringIo(s)
  }
  if (input) {
    pollRead(s, ((load<u64>(s, CPU_RIP) << 16) | <u64>port) + 2, pollWindow(true))
    chargeAccess(s)
    if (inKernelPort(s, port)) {
      mergeRax(s, size, busRead(s, port, size))
      return DONE
    }
    exitIo(s, false, port, size, 1)
    store<u32>(k, PENDING_GHCB_IN, VKVM_PENDING)
    return LEFT
  }
  pollEnd(s)
  chargeAccess(s)
  const value = load<u32>(k, VKVM_GHCB_RAX)
  if (inKernelPort(s, port)) {
    busWrite(s, port, size, value)
    return DONE
  }
  if (ioeventWrite(s, true, <u64>port, size, <u64>value) || coalescedWrite(s, true, <u64>port, size, <u64>value)) return DONE
  store<u32>(pioData(s), value)
  exitIo(s, true, port, size, 1)
  store<u32>(k, PENDING_GHCB_OUT, VKVM_PENDING)
  return LEFT
}

/** kvm_sev_es_ins / outs: up to a page per exit. */
function stringIo(s: usize): u32 {
  const k = vkvm(s)
  const size = load<u32>(k, VKVM_PIO_SIZE)
  const port = load<u32>(k, VKVM_PIO_PORT)
  const input = load<u64>(k, VKVM_GHCB_ADDRESS) != 0
  while (load<u32>(k, VKVM_GHCB_LEFT) != 0) {
    chargeAccess(s)
    if (inKernelPort(s, port)) {
      const at = k + VKVM_BUFFER
      if (input) {
        store<u32>(at, busRead(s, port, size))
        put(s, at, size)
      } else {
        store<u32>(at, 0)
        fetch(s, at, size)
        busWrite(s, port, size, load<u32>(at))
      }
      moved(s, 1, size)
      continue
    }
    let count = load<u32>(k, VKVM_GHCB_LEFT)
    if (count > 4096 / size) count = 4096 / size
    store<u32>(k, count, VKVM_PIO_COUNT)
    if (!input) {
      fetch(s, pioData(s), count * size)
      moved(s, count, size)
    }
    exitIo(s, !input, port, size, count)
    store<u32>(k, PENDING_GHCB_STRING, VKVM_PENDING)
    return LEFT
  }
  return DONE
}

function moved(s: usize, count: u32, size: u32): void {
  const k = vkvm(s)
  store<u32>(k, load<u32>(k, VKVM_GHCB_POS) + count * size, VKVM_GHCB_POS)
  store<u32>(k, load<u32>(k, VKVM_GHCB_LEFT) - count, VKVM_GHCB_LEFT)
}

/** SVM_VMGEXIT_MMIO_READ / WRITE: GPA in SW_EXITINFO1, length in SW_EXITINFO2. */
export function ghcbMmio(s: usize, write: bool): u32 {
  const k = vkvm(s)
  const length = load<u64>(k, VKVM_GHCB_INFO2)
  if (length == 0) return DONE
  if (length > 8 && load<u32>(vmOf(s), VM_GHCB_VERSION) >= 2) return badInput(s, GHCB_ERR_INVALID_INPUT)
  const ready = scratch(s, length)
  if (ready != READY) return ready
  store<u64>(k, load<u64>(k, VKVM_GHCB_INFO1), VKVM_GHCB_ADDRESS)
  store<u32>(k, <u32>length, VKVM_GHCB_LEFT)
  store<u32>(k, write ? 1 : 0, VKVM_PIO_COUNT)
  if (write) pollEnd(s)
  else pollRead(s, ((load<u64>(s, CPU_RIP) << 16) ^ load<u64>(k, VKVM_GHCB_INFO1)) + 3, pollWindow(true))
  return mmioPieces(s)
}

function mmioPieces(s: usize): u32 {
  const k = vkvm(s)
  const write = load<u32>(k, VKVM_PIO_COUNT) != 0
  const at = k + VKVM_BUFFER
  while (load<u32>(k, VKVM_GHCB_LEFT) != 0) {
    const gpa = load<u64>(k, VKVM_GHCB_ADDRESS)
    let n = load<u32>(k, VKVM_GHCB_LEFT)
    if (n > 8) n = 8
    chargeAccess(s)
    store<u64>(at, 0)
    if (write) fetch(s, at, n)
    if (busHas(s, gpa)) {
      if (write) busMmioWrite(s, gpa, n, load<u64>(at))
      else {
        store<u64>(at, busMmioRead(s, gpa, n))
        put(s, at, n)
      }
      moved(s, n, 1)
      store<u64>(k, gpa + <u64>n, VKVM_GHCB_ADDRESS)
      continue
    }
    if (write && (ioeventWrite(s, false, gpa, n, load<u64>(at)) || coalescedWrite(s, false, gpa, n, load<u64>(at)))) {
      moved(s, n, 1)
      store<u64>(k, gpa + <u64>n, VKVM_GHCB_ADDRESS)
      continue
    }
    exitMmio(s, write, gpa, n, load<u64>(at))
    store<u32>(k, n, VKVM_PIO_SIZE)
    store<u32>(k, PENDING_GHCB_MMIO, VKVM_PENDING)
    return LEFT
  }
  return DONE
}

/** Completions at the next KVM_RUN: 1 = the guest may resume, 0 = another exit. */
export function completeGhcbIn(s: usize): i32 {
  mergeRax(s, load<u32>(vkvm(s), VKVM_PIO_SIZE), load<u32>(pioData(s)))
  return 1
}

export function completeGhcbString(s: usize): i32 {
  const k = vkvm(s)
  if (load<u64>(k, VKVM_GHCB_ADDRESS) != 0) {
    const size = load<u32>(k, VKVM_PIO_SIZE)
    const count = load<u32>(k, VKVM_PIO_COUNT)
    put(s, pioData(s), count * size)
    moved(s, count, size)
  }
  return stringIo(s) == DONE ? 1 : 0
}

export function completeGhcbMmio(s: usize): i32 {
  const k = vkvm(s)
  const n = load<u32>(k, VKVM_PIO_SIZE)
  if (load<u32>(k, VKVM_PIO_COUNT) == 0) put(s, runOf(s) + RUN_MMIO_DATA, n)
  moved(s, n, 1)
  store<u64>(k, load<u64>(k, VKVM_GHCB_ADDRESS) + <u64>n, VKVM_GHCB_ADDRESS)
  return mmioPieces(s) == DONE ? 1 : 0
}
