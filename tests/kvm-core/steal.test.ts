/** The steal-time area when a run is cut into pieces: the same memory as in one go. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { call, L } from '../support/core.ts'
import { Guest } from './guest.ts'

const test = suite('steal time')
const AREA = 0x9000

test('budgets do not show in it, the turns of others do', () => {
  const area = (pieces: readonly number[], other: boolean): string => {
    const g = new Guest({ irqchip: true, vcpus: 2 })
    const [a = 0, b = 0] = g.cpus
    g.write(0x1000, [0x40, 0xeb, 0xfd])
    for (const s of [a, b]) {
      g.core.view.setUint32(s + L.CPU_HALTED, 0, true)
      g.enter(0x1000, s)
    }
    g.core.view.setBigUint64(a + L.VCPU_KVM + L.VKVM_STEAL, BigInt(AREA | 1), true)
    for (const [i, n] of pieces.entries()) {
      if (other && i === pieces.length - 1) call(g.core, 'vcpuRun', b, 500n)
      call(g.core, 'vcpuRun', a, BigInt(n))
    }
    return Buffer.from(g.read(AREA, 64)).toString('hex')
  }
  const whole = area([1000], false)
  for (const pieces of [[500, 500], [1, 999], [100, 200, 300, 400], new Array<number>(1000).fill(1)]) assert.is(area(pieces, false), whole)
  const turns = Buffer.from(area([400, 600], true), 'hex')
  assert.is(turns.readBigUInt64LE(0), 500n, 'stolen')
  assert.is(turns.readUInt32LE(8), 4, 'version')
  assert.is(turns[16], 1, 'preempted')
})

test.run()
