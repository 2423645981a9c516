/** Debian's OVMF, unmodified, to its shell: as an ordinary VM and as SEV-ES guests. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Machine, type MachineOptions, type RunResult } from '../../host/vmm/index.ts'
import { needs } from '../support/needs.ts'
import { ovmf } from './helpers.ts'

const boot = async (options: MachineOptions): Promise<RunResult & { output: string }> => {
  let output = ''
  const abort = new AbortController()
  const machine = await Machine.create({
    firmware: ovmf(),
    maxInstructions: 4_000_000_000,
    timeoutSeconds: 300,
    onSerial: (bytes) => {
      output += new TextDecoder().decode(bytes)
      if (output.includes('Shell>')) abort.abort()
    },
    ...options,
  })
  try {
    return { ...(await machine.run({ signal: abort.signal })), output }
  } finally {
    machine[Symbol.dispose]()
  }
}

needs(test, 'ovmf', 'OVMF reaches its shell as an ordinary VM', async () => {
  const result = await boot({})
  assert.ok(result.output.includes('Shell>'), `${result.reason}: ${result.detail}`)
})

needs(test, 'ovmf', 'OVMF reaches its shell as a SEV-ES guest', async () => {
  const result = await boot({ type: 'sev-es' })
  assert.ok(result.output.includes('Shell>'), `${result.reason}: ${result.detail}`)
  const { ghcb } = result.report
  assert.ok(ghcb && (ghcb['SVM_EXIT_IOIO'] ?? 0) > 1000)
  assert.ok(ghcb && (ghcb['SVM_EXIT_CPUID'] ?? 0) > 100)
})

test.run()
