/** Every exit's payload: by a guest elsewhere in this folder, and here by the bytes of struct kvm_run (uapi/linux/kvm.h). */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { decodeExit, ERRNO, EXIT, type Exit, openKvm, RUN } from 'cloister'
import { RawMachine } from '../raw-machine.ts'
import { RawGuest } from './raw-guest.ts'

function run(
  reason: keyof typeof EXIT,
  ...fields: readonly (readonly [at: number, bits: 8 | 16 | 32 | 64, value: number | bigint])[]
): Exit {
  const bytes = new Uint8Array(12288)
  const view = new DataView(bytes.buffer)
  view.setUint32(8, EXIT[reason], true)
  for (const [at, bits, value] of fields) {
    if (bits === 64) view.setBigUint64(at, BigInt(value), true)
    else if (bits === 32) view.setUint32(at, Number(value), true)
    else if (bits === 16) view.setUint16(at, Number(value), true)
    else view.setUint8(at, Number(value))
  }
  return decodeExit(bytes, view)
}

test('payloads by byte layout', () => {
  assert.equal(run('KVM_EXIT_TPR_ACCESS', [32, 64, 0x1234], [40, 32, 1]), { reason: 'KVM_EXIT_TPR_ACCESS', rip: 0x1234n, isWrite: true })
  assert.equal(run('KVM_EXIT_SNP_REQ_CERTS', [32, 64, 0x5000], [40, 64, 4]), { reason: 'KVM_EXIT_SNP_REQ_CERTS', gpa: 0x5000n, npages: 4n })
  assert.equal(run('KVM_EXIT_NOTIFY', [32, 32, 1]), { reason: 'KVM_EXIT_NOTIFY', flags: 1 })
  assert.equal(run('KVM_EXIT_TDX', [40, 64, 0x10002], [56, 64, 0x8000_0000_1000n], [64, 64, 0x2000]), {
    reason: 'KVM_EXIT_TDX',
    flags: 0n,
    call: { nr: 0x10002n, gpa: 0x8000_0000_1000n, size: 0x2000n },
  })
  assert.equal(run('KVM_EXIT_TDX', [40, 64, 0x10000], [56, 64, 1]), { reason: 'KVM_EXIT_TDX', flags: 0n, call: { nr: 0x10000n, leaf: 1n } })
  assert.equal(run('KVM_EXIT_TDX', [40, 64, 0x10004], [56, 64, 0x40]), {
    reason: 'KVM_EXIT_TDX',
    flags: 0n,
    call: { nr: 0x10004n, vector: 0x40n },
  })
  assert.equal(run('KVM_EXIT_TDX', [32, 64, 2], [40, 64, 9], [56, 64, 1], [88, 64, 5]), {
    reason: 'KVM_EXIT_TDX',
    flags: 2n,
    call: { nr: 9n, data: [1n, 0n, 0n, 0n, 5n] },
  })
  assert.equal([RUN.TDX_RET, RUN.TDX_R11, RUN.CERTS_RET, RUN.HYPERCALL_RET], [48, 64, 48, 88], 'where the answers go')
  const hyperv = run('KVM_EXIT_HYPERV', [32, 32, 2], [40, 64, 0x1_0000_0002n], [48, 64, 7], [56, 64, 8], [64, 64, 9])
  assert.equal(hyperv, { reason: 'KVM_EXIT_HYPERV', type: 2, data: [0x1_0000_0002n, 7n, 8n, 9n, 0n, 0n] })
  const xen = run('KVM_EXIT_XEN', [32, 32, 1], [40, 32, 1], [44, 32, 3], [48, 64, 17], [64, 64, 1], [104, 64, 6])
  assert.equal(xen, { reason: 'KVM_EXIT_XEN', type: 1, longMode: true, cpl: 3, input: 17n, params: [1n, 0n, 0n, 0n, 0n, 6n] })
  assert.equal(run('KVM_EXIT_SYSTEM_EVENT', [32, 32, 7], [36, 32, 2], [40, 64, 1], [48, 64, 2]), {
    reason: 'KVM_EXIT_SYSTEM_EVENT',
    type: 7,
    data: [1n, 2n],
  })
  assert.equal(run('KVM_EXIT_FAIL_ENTRY', [32, 64, 0xffff_ffff_ffff_ffffn], [40, 32, 3]), {
    reason: 'KVM_EXIT_FAIL_ENTRY',
    hardwareEntryFailureReason: 0xffff_ffff_ffff_ffffn,
    cpu: 3,
  })
  assert.equal(run('KVM_EXIT_HYPERCALL', [32, 64, 12], [40, 64, 0x1000], [48, 64, 2], [56, 64, 0x10], [96, 64, 1]), {
    reason: 'KVM_EXIT_HYPERCALL',
    nr: 12n,
    args: [0x1000n, 2n, 0x10n, 0n, 0n, 0n],
    flags: 1n,
  })
  const failure = run('KVM_EXIT_INTERNAL_ERROR', [32, 32, 1], [36, 32, 3], [40, 64, 1], [48, 8, 2], [49, 8, 0xd9], [50, 8, 0])
  assert.equal(failure.reason === 'KVM_EXIT_INTERNAL_ERROR' && [...(failure.instruction ?? [])], [0xd9, 0])
  // A reason that no kernel has.
  const bytes = new Uint8Array(4096)
  new DataView(bytes.buffer).setUint32(8, 999, true)
  assert.equal(decodeExit(bytes, new DataView(bytes.buffer)), { reason: 'KVM_EXIT_UNKNOWN', hardwareExitReason: 999n })
})

test('every exit reason of the kernel header has a decoder that does not throw on any bytes', () => {
  let seed = 1
  const random = (): number => {
    seed = (seed * 1103515245 + 12345) & 0x7fffffff
    return seed >>> 16
  }
  for (const reason of Object.values(EXIT)) {
    for (let i = 0; i < 50; i++) {
      const bytes = Uint8Array.from({ length: 12288 }, () => random() & 255)
      const view = new DataView(bytes.buffer)
      view.setUint32(8, reason, true)
      const exit = decodeExit(bytes, view)
      assert.is(EXIT[exit.reason as keyof typeof EXIT], reason)
    }
  }
})

test('KVM_SET_PMU_EVENT_FILTER: what pmu_event_filter_test expects of a filter', async () => {
  const kvm = await openKvm()
  const machine = new RawMachine(kvm, 'default')
  const filter = (action: number, count: number, flags: number, events: readonly bigint[], size = 32 + events.length * 8): number => {
    const bytes = new Uint8Array(size)
    bytes.set(new Uint8Array(new Uint32Array([action, count, 0, flags]).buffer))
    if (events.length > 0) bytes.set(new Uint8Array(new BigUint64Array(events).buffer), 32)
    return machine.ioctl('KVM_SET_PMU_EVENT_FILTER', bytes)
  }
  assert.is(filter(0, 0, 0, []), 0)
  assert.is(filter(1, 2, 0, [0xc0n, 0xffff_ffff_ffff_ffffn]), 0)
  assert.is(filter(2, 0, 0, []), -ERRNO.EINVAL)
  assert.is(filter(0, 0, 2, []), -ERRNO.EINVAL)
  assert.is(filter(0, 301, 0, [], 32), -ERRNO.E2BIG)
  assert.is(filter(0, 300, 0, [], 32), -ERRNO.EFAULT)
  assert.is(filter(0, 1, 1, [0xff80_000f_0000_ffffn]), 0)
  assert.is(filter(0, 1, 1, [0x10_0000n]), -ERRNO.EINVAL)
  const intel = new RawMachine(await openKvm({ host: 'intel' }), 'tdx')
  const masked = new Uint8Array(40)
  masked.set(new Uint8Array(new Uint32Array([0, 1, 0, 1]).buffer))
  new DataView(masked.buffer).setBigUint64(32, 0x1_0000_0000n, true)
  assert.is(intel.ioctl('KVM_SET_PMU_EVENT_FILTER', masked), -ERRNO.EINVAL, 'event bits 35:32 are of AMD alone')
})

test('KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE without nested guests: 7.3 refuses, 6.12 answers', async () => {
  const state = (flags: number, format: number, size: number): Uint8Array => {
    const bytes = new Uint8Array(128)
    bytes.set(new Uint8Array(new Uint16Array([flags, format, size, 0]).buffer))
    return bytes
  }
  const now = await RawGuest.create([0xf4])
  assert.is(now.call('KVM_GET_NESTED_STATE', state(0, 0, 4224)), -ERRNO.EINVAL)
  assert.is(now.call('KVM_SET_NESTED_STATE', state(0x100, 1, 128)), -ERRNO.EINVAL)
  const then = await RawGuest.create([0xf4], { options: { linux: '6.12' } })
  const small = state(0, 0, 127)
  assert.is(then.call('KVM_GET_NESTED_STATE', small), -ERRNO.E2BIG)
  assert.is(new DataView(small.buffer).getUint32(4, true), 128)
  const whole = state(0, 0, 4224)
  assert.is(then.call('KVM_GET_NESTED_STATE', whole), 0)
  assert.equal(whole, state(0x100, 1, 128))
  assert.is(then.call('KVM_SET_NESTED_STATE', whole), 0)
  for (const [flags, format, size] of [
    [0x100, 1, 127],
    [0x100, 0, 128],
    [0, 1, 128],
    [0x101, 1, 128],
    [0x102, 1, 128],
    [0x110, 1, 128],
  ] as const)
    assert.is(then.call('KVM_SET_NESTED_STATE', state(flags, format, size)), -ERRNO.EINVAL, `${flags} ${format} ${size}`)
})

test.run()
