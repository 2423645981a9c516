/** Flat guests in the three modes, and every way a run ends. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { type FlatImage, Machine, type MachineOptions, type RunResult } from '../../host/vmm/index.ts'
import { CPU_RANDOM } from '../../host/generated/layout.ts'

const run = async (
  code: number[],
  options: Partial<MachineOptions> & { mode?: FlatImage['mode']; input?: string } = {},
): Promise<RunResult & { output: string }> => {
  let output = ''
  const { mode = 'long64', input, ...rest } = options
  const load = mode === 'real16' ? 0x7c00 : 0x10000
  const machine = await Machine.create({
    memory: 16 << 20,
    image: { bytes: Uint8Array.from(code), load, entry: load, mode },
    onSerial: (bytes) => {
      output += new TextDecoder().decode(bytes)
    },
    timeoutSeconds: 20,
    ...rest,
  })
  try {
    if (input !== undefined) machine.serialInput(new TextEncoder().encode(input))
    machine.closeInput()
    return { ...(await machine.run()), output }
  } finally {
    machine[Symbol.dispose]()
  }
}

// mov dx, 0x3f8; mov al, 'A'; out dx, al; mov al, 3; out 0xf4, al; hlt
const hello16 = [0xba, 0xf8, 0x03, 0xb0, 0x41, 0xee, 0xb0, 0x03, 0xe6, 0xf4, 0xf4]
const hello32 = [0xba, 0xf8, 0x03, 0, 0, 0xb0, 0x41, 0xee, 0xb0, 0x03, 0xe6, 0xf4, 0xf4]

for (const mode of ['real16', 'protected32', 'long64'] as const) {
  test(`${mode}: serial output and debug-exit`, async () => {
    const result = await run(mode === 'real16' ? hello16 : hello32, { mode })
    assert.is(result.output, 'A')
    assert.is(result.reason, 'debug-exit')
    assert.is(result.debugExit, 3)
    assert.is(result.status, 7)
    assert.is(result.report.exits['KVM_EXIT_IO'], 2)
  })
}

test('an endless loop ends by its exact instruction budget', async () => {
  const result = await run([0xeb, 0xfe], { maxInstructions: 3_000_001 })
  assert.is(result.reason, 'budget-instructions')
  assert.is(result.status, 124)
  assert.is(result.report.instructions, 3_000_001)
})

test('an endless loop ends by its time budget', async () => {
  const result = await run([0xeb, 0xfe], { timeoutSeconds: 0.2 })
  assert.is(result.reason, 'budget-time')
  assert.is(result.status, 124)
  assert.ok(result.report.seconds < 2)
})

test('an endless loop ends by AbortSignal', async () => {
  const machine = await Machine.create({
    memory: 16 << 20,
    image: { bytes: Uint8Array.of(0xeb, 0xfe), load: 0x10000, entry: 0x10000, mode: 'long64' },
  })
  const abort = new AbortController()
  setTimeout(() => abort.abort(), 100)
  const result = await machine.run({ signal: abort.signal })
  assert.is(result.reason, 'interrupted')
  assert.is(result.status, 130)
  machine[Symbol.dispose]()
})

test('ud2 without an IDT is a triple fault', async () => {
  const result = await run([0x0f, 0x0b])
  assert.is(result.reason, 'triple-fault')
  assert.is(result.status, 126)
})

test('a jump into nowhere fails', async () => {
  // mov eax, 0xdead0000; jmp rax
  const result = await run([0xb8, 0, 0, 0xad, 0xde, 0xff, 0xe0])
  assert.is(result.status, 126)
})

test('cli; hlt has halted for good', async () => {
  const result = await run([0xfa, 0xf4])
  assert.is(result.reason, 'halted')
  assert.is(result.status, 0)
})

test('sti; hlt with nobody left to wake it has halted for good', async () => {
  const result = await run([0xfb, 0xf4, 0xeb, 0xfd])
  assert.is(result.reason, 'halted')
})

test('ACPI sleep and port 0xcf9 power off', async () => {
  // mov dx, 0xcf9; mov al, 6; out dx, al
  const result = await run([0xba, 0xf9, 0x0c, 0, 0, 0xb0, 6, 0xee, 0xf4])
  assert.is(result.reason, 'powered-off')
  assert.is(result.status, 0)
})

test('serial input reaches the guest', async () => {
  // mov dx, 0x3fd; wait: in al, dx; test al, 1; jz wait; mov dl, 0xf8; in al, dx; out dx, al; out 0xf4, al
  const result = await run([0xba, 0xfd, 0x03, 0, 0, 0xec, 0xa8, 1, 0x74, 0xfb, 0xb2, 0xf8, 0xec, 0xee, 0xe6, 0xf4], { input: 'Z' })
  assert.is(result.output, 'Z')
  assert.is(result.debugExit, 0x5a)
})

test('string output counts its bytes', async () => {
  // lea rsi, [rip + 16]; mov ecx, 5; mov edx, 0x3f8; rep outsb; out 0xf4, al; hlt
  const code = [0x48, 0x8d, 0x35, 15, 0, 0, 0, 0xb9, 5, 0, 0, 0, 0xba, 0xf8, 3, 0, 0, 0xf3, 0x6e, 0xe6, 0xf4, 0xf4]
  const result = await run([...code, ...[...'hello'].map((c) => c.charCodeAt(0))])
  assert.is(result.output, 'hello')
})

test('two runs of one seed are the same run', async () => {
  const a = await run(hello32)
  const b = await run(hello32)
  assert.equal({ ...a.report, seconds: 0 }, { ...b.report, seconds: 0 })
})

test('RDRAND follows the seed, and no two vCPUs draw the same', async () => {
  // rdrand eax; out 0xf4, eax
  const bytes = Uint8Array.of(0x0f, 0xc7, 0xf0, 0xe7, 0xf4, 0xf4)
  const draw = async (seed: number): Promise<number | null> => {
    const machine = await Machine.create({ image: { bytes, load: 0x10000, entry: 0x10000, mode: 'long64' }, memory: 1 << 21, seed })
    const { debugExit } = await machine.run()
    machine[Symbol.dispose]()
    return debugExit
  }
  const drawn = [await draw(0), await draw(1), await draw(2), await draw(1)]
  assert.is(drawn[1], drawn[3])
  assert.is(new Set(drawn).size, 3, `${drawn.join(' ')}`)
  const two = await Machine.create({ image: { bytes, load: 0x10000, entry: 0x10000, mode: 'long64' }, memory: 1 << 21, smp: 2, seed: 1 })
  const states = two.vcpus.map((vcpu) => vcpu.file.cpu.getBigUint64(CPU_RANDOM, true))
  two[Symbol.dispose]()
  assert.is.not(states[0], states[1])
})

test('SEV-ES: several vCPUs need the firmware’s reset block', async () => {
  const firmware = new Uint8Array(4096).fill(0x90)
  firmware.set([0xeb, 0xfe], 4080)
  for (const type of ['sev-es', 'sev-es-legacy'] as const) {
    const machine = await Machine.create({ type, firmware, memory: 16 << 20 })
    machine[Symbol.dispose]()
    try {
      await Machine.create({ type, firmware, memory: 16 << 20, smp: 2 })
      assert.unreachable()
    } catch (error) {
      assert.match(String(error), /SEV-ES reset block/)
    }
  }
})

/** An AP started by INIT-SIPI-SIPI counts beside the BSP; both spin, so the result depends on who runs when. */
test('two vCPUs: serial slices give the same run every time', async () => {
  // AP at 0x8000 (real mode): inc word [0x600]; jmp back
  const trampoline = [0xff, 0x06, 0x00, 0x06, 0xeb, 0xfa]
  const code = [
    ...[0xbf, 0x00, 0x80, 0, 0, 0x48, 0x8d, 0x35, 0x2c, 0, 0, 0], // mov edi, 0x8000; lea rsi, [rip + trampoline]
    ...[0xb9, 6, 0, 0, 0, 0xf3, 0xa4], // mov ecx, 6; rep movsb
    ...[0xbb, 0x00, 0x03, 0xe0, 0xfe], // mov ebx, 0xfee00300
    ...[0xc7, 0x03, 0x00, 0x45, 0x0c, 0x00], // INIT to all but self
    ...[0xc7, 0x03, 0x08, 0x46, 0x0c, 0x00], // SIPI, vector 8
    ...[0xb9, 0x50, 0xc3, 0, 0, 0xff, 0xc9, 0x75, 0xfc], // 50000 turns
    ...[0xb8, 0, 6, 0, 0, 0x0f, 0xb7, 0x00, 0xe7, 0xf4], // movzx eax, word [0x600]; out 0xf4, eax
    0xf4,
  ]
  const at = 12 + 0x2c
  const image = new Uint8Array(Math.max(code.length, at) + trampoline.length).fill(0x90)
  image.set(code)
  image.set(trampoline, at)
  const results: (number | null)[] = []
  for (let i = 0; i < 2; i++) results.push((await run([...image], { smp: 2 })).debugExit)
  assert.is(results[0], results[1])
  assert.ok((results[0] ?? 0) > 1000)
})

test.run()
