/** Launch digests against those that virtee/sev-snp-measure computes for Debian's OVMF (OVMF.fd of ovmf 2022.11-6+deb12u2). */
import { createHash } from 'node:crypto'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Machine, type MachineOptions } from '../../host/vmm/index.ts'
import { needs } from '../support/needs.ts'
import { ovmf } from './helpers.ts'

const measure = async (options: MachineOptions): Promise<string> => {
  const machine = await Machine.create({ firmware: ovmf(), ...options })
  try {
    return machine.measure()
  } finally {
    machine[Symbol.dispose]()
  }
}

needs(test, 'ovmf', 'sev: the digest is the SHA-256 of the image', async () => {
  const digest = createHash('sha256').update(ovmf()).digest('hex')
  assert.is(await measure({ type: 'sev' }), digest)
  assert.is(await measure({ type: 'sev-legacy' }), digest)
})

const expected: readonly [MachineOptions['type'], number, string][] = [
  ['sev-es', 1, '8590d0b6'],
  ['sev-es', 2, 'e0adde74'],
  ['sev-es', 4, '20870ccf'],
  ['sev-es-legacy', 1, '1098dfc8c777edbe39cd994cd7c26a9220d9e0791209ab1c26fc073cec1b4845'],
  ['sev-es-legacy', 2, 'baab03ba'],
  ['sev-es-legacy', 4, '9440cd95'],
]
for (const [type, smp, head] of expected) {
  needs(test, 'ovmf', `${type}, ${smp} vCPU`, async () => {
    const digest = await measure({ type: type as 'sev-es', smp, vcpuType: 'EPYC-Milan' })
    assert.is(digest.slice(0, head.length), head)
    assert.is(digest.length, 64)
  })
}

test.run()
