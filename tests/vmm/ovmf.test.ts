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

needs(test, 'ovmf', 'an ordinary VM reaches the shell, answers a command and powers off', async () => {
  let output = ''
  let step = 0
  const commands = ['ver', 'reset -s']
  const machine = await Machine.create({
    firmware: ovmf(),
    maxInstructions: 4_000_000_000,
    timeoutSeconds: 300,
    onSerial: (bytes) => {
      output += new TextDecoder().decode(bytes)
      if (output.split('Shell> ').length - 1 > step && step < commands.length)
        machine.serialInput(new TextEncoder().encode(`${commands[step++]}\r`))
    },
  })
  const result = await machine.run()
  machine[Symbol.dispose]()
  assert.is(result.reason, 'powered-off', String(result.detail))
  assert.is(result.status, 0)
  assert.match(output, /UEFI Interactive Shell v2\.2[\s\S]*Shell> [\s\S]*UEFI Interactive Shell v2\.2/)
})

needs(test, 'ovmf', 'a SEV guest reaches the shell', async () => {
  const result = await boot({ type: 'sev' })
  assert.ok(result.output.includes('Shell>'), `${result.reason}: ${result.detail}`)
})

needs(test, 'ovmf', 'a SEV-ES guest reaches the shell', async () => {
  const result = await boot({ type: 'sev-es' })
  assert.ok(result.output.includes('Shell>'), `${result.reason}: ${result.detail}`)
  const { ghcb } = result.report
  assert.ok(ghcb)
  assert.ok((ghcb['SVM_EXIT_IOIO'] ?? 0) > 1000)
  assert.ok((ghcb['SVM_EXIT_CPUID'] ?? 0) > 100)
  assert.is(ghcb['MSR_CPUID'], 8)
})

needs(test, 'ovmf', 'a legacy SEV-ES guest with two vCPUs reaches the shell; its AP starts from the reset block', async () => {
  const result = await boot({ type: 'sev-es-legacy', smp: 2 })
  assert.ok(result.output.includes('Shell>'), `${result.reason}: ${result.detail}`)
  assert.is(result.report.ghcb?.['SVM_VMGEXIT_AP_JUMP_TABLE'], 1)
  assert.ok((result.report.ghcb?.['SVM_VMGEXIT_AP_HLT_LOOP'] ?? 0) > 1)
})

test.run()
