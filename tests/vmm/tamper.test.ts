/** What a hostile host can do to a launched SEV-ES guest, and what the guest or the hardware make of it. */
import { readFileSync } from 'node:fs'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { Machine, type MachineOptions, type RunResult } from '../../host/vmm/index.ts'
import { needs } from '../support/needs.ts'
import { ovmf } from './helpers.ts'

const LOAD = 0x200000
const bytes = new Uint8Array(readFileSync('tests/guests/sev-es.bin'))

const withGuest = async (
  meddle: (machine: Machine) => void,
  options: Partial<MachineOptions> = {},
): Promise<RunResult & { output: string }> => {
  let output = ''
  const machine = await Machine.create({
    type: 'sev-es',
    memory: 16 << 20,
    image: { bytes, load: LOAD, entry: LOAD, mode: 'long64' },
    maxInstructions: 20_000_000,
    timeoutSeconds: 30,
    onSerial: (chunk) => {
      output += new TextDecoder('latin1').decode(chunk)
    },
    ...options,
  })
  try {
    machine.closeInput()
    machine.launch()
    meddle(machine)
    return { ...(await machine.run()), output }
  } finally {
    machine[Symbol.dispose]()
  }
}

const flip = (machine: Machine, address: number, bit: number): void => {
  const byte = machine.readMemory(address, 1)
  assert.ok(byte)
  machine.writeMemory(address, Uint8Array.of((byte[0] as number) ^ (1 << bit)))
}

const contains = (haystack: Uint8Array, needle: string): boolean => Buffer.from(haystack).includes(needle)

for (const type of ['sev-es', 'sev-es-legacy'] as const) {
  test(`${type}: left alone, the guest finishes; the host reads ciphertext only`, async () => {
    const result = await withGuest(
      (machine) => {
        const seen = machine.readMemory(LOAD, bytes.length)
        assert.ok(seen && contains(bytes, 'Hello from') && !contains(seen, 'Hello from'))
      },
      { type },
    )
    assert.is(result.reason, 'halted')
    assert.match(result.output, /Hello from an SEV-ES guest/)
    assert.match(result.output, /CPUID, through the GHCB: AuthenticAMD/)
  })
}

test('one flipped ciphertext bit garbles 16 bytes of code: the guest fails', async () => {
  const result = await withGuest((machine) => flip(machine, LOAD + 3, 5))
  assert.not(result.output.includes('Hello'))
  assert.not(result.status === 0)
})

test('one flipped ciphertext bit in a message garbles exactly its block', async () => {
  const at = Buffer.from(bytes).indexOf('Hello from')
  const result = await withGuest((machine) => flip(machine, LOAD + at + 16 - (at % 16), 0))
  assert.is(result.reason, 'halted')
  assert.not(result.output.includes('Hello from an SEV-ES guest'))
  assert.match(result.output, /My secret is in memory/)
})

test('ciphertext moved to another address does not decrypt there', async () => {
  const at = Buffer.from(bytes).indexOf('Hello from')
  const block = LOAD + at - (at % 16)
  const result = await withGuest((machine) => {
    const page = machine.readMemory(block + 16, 16)
    assert.ok(page)
    machine.writeMemory(block, page)
  })
  assert.not(result.output.includes('Hello from an SEV-ES guest'))
})

test('a sealed VMSA that was changed is not entered', async () => {
  const result = await withGuest((machine) => {
    const page = machine.vcpus[0]?.vmsaPage()
    assert.ok(page)
    const byte = page.read(0x178, 1)
    page.write(0x178, Uint8Array.of((byte[0] as number) ^ 1))
  })
  assert.is(result.reason, 'guest-terminated')
  assert.match(String(result.detail), /KVM_EXIT_FAIL_ENTRY/)
  assert.is(result.status, 126)
  assert.is(result.output, '')
})

test('a CPUID leaf that the host changed is what the #VC handler receives', async () => {
  const result = await withGuest((machine) => {
    const vcpu = machine.vcpus[0]
    assert.ok(vcpu)
    const [b, d, c] = ['Cloi', 'ster', 'Test'].map((s) => Buffer.from(s).readUInt32LE())
    vcpu.setCpuid2(vcpu.getCpuid2().map((e) => (e.function === 0 ? { ...e, ebx: b as number, ecx: c as number, edx: d as number } : e)))
  })
  assert.match(result.output, /CPUID, through the GHCB: CloisterTest/)
})

needs(test, 'ovmf', 'OVMF: one flipped bit beside the reset vector, and its #VC handler is never reached', async () => {
  const boot = (meddle: (machine: Machine) => void): Promise<RunResult> =>
    withGuest(meddle, { image: undefined as never, firmware: ovmf(), memory: 64 << 20 })
  const asked = (result: RunResult): number => Object.values(result.report.ghcb ?? {}).reduce((sum, n) => sum + n, 0)
  // What 16 garbled bytes do is the cipher's choice (halt, fault for ever, run in circles); they never ask the hypervisor.
  assert.ok(asked(await boot(() => {})) > 0)
  assert.is(asked(await boot((machine) => flip(machine, 0xfffffff1, 0))), 0)
})

test.run()
