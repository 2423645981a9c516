/** `cloister run`: exit statuses, console, report. Guests are raw machine code unless a sample says more. */
import { spawn, spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { cloister, command, guest, workFolder } from './cli.ts'

const test = suite('run')
const work = workFolder()

const code = (name: string, ...bytes: number[]): string => work.put(name, Uint8Array.from(bytes))
const flat = (file: string, mode = 'long64', load = '0x100000'): string[] => [
  'run',
  '--image',
  file,
  '--load',
  load,
  '--mode',
  mode,
  '--memory',
  '16M',
]

const HLT = [0xfa, 0xf4]
const hang = code('hang.bin', 0xeb, 0xfe)
const halt = code('halt.bin', ...HLT)

test('hlt with interrupts off is 0', () => {
  const { status, stderr } = cloister(flat(halt))
  assert.is(status, 0, stderr)
  assert.is(stderr, '')
})

test('modes: real16 and protected32 halt as well', () => {
  assert.is(cloister(flat(halt, 'real16', '0x8000')).status, 0)
  assert.is(cloister(flat(halt, 'protected32')).status, 0)
})

test('debug exit is odd, (value << 1) | 1', () => {
  // mov al, 5; out 0xf4, al
  assert.is(cloister(flat(code('debug.bin', 0xb0, 5, 0xe6, 0xf4, ...HLT))).status, 11)
  assert.is(cloister(flat(code('debug0.bin', 0xb0, 0, 0xe6, 0xf4, ...HLT))).status, 1)
})

test('each way to reset ends the run with 0, named in report and text', () => {
  const report = work.path('reset.json')
  const ways: [what: string, code: number[]][] = [
    ['port 0xcf9', [0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee]],
    ['port 0x92', [0xb0, 0x01, 0xe6, 0x92]],
    ['keyboard controller', [0xb0, 0xfe, 0xe6, 0x64]],
  ]
  for (const [what, bytes] of ways) {
    const { status, stderr } = cloister([...flat(code('reset.bin', ...bytes, 0xeb, 0xfe)), '--report', report])
    assert.is(status, 0)
    assert.is(stderr, `cloister: reset by ${what}: a reset ends the run\n`)
    assert.equal(JSON.parse(readFileSync(report, 'utf8')).exit, { reason: 'powered-off', detail: `reset by ${what}` })
  }
})

test('the report holds the whole debug-exit value', () => {
  const report = work.path('debug.json')
  // mov eax, 0x1234; out 0xf4, eax
  const file = code('debug32.bin', 0xb8, 0x34, 0x12, 0, 0, 0xe7, 0xf4, ...HLT)
  assert.is(cloister([...flat(file), '--report', report]).status, ((0x1234 << 1) | 1) & 0xff)
  const { exit } = JSON.parse(readFileSync(report, 'utf8'))
  assert.is(exit.reason, 'debug-exit')
  assert.match(String(exit.detail), /0x1234|4660/)
})

test('ud2 without an IDT is 126', () => {
  const { status, stderr } = cloister(flat(code('ud2.bin', 0x0f, 0x0b)))
  assert.is(status, 126, stderr)
  assert.match(stderr, /triple-fault/)
})

test('what KVM itself cannot emulate is 120 and named: x87 on MMIO', () => {
  // fld dword [0x40000000]
  const { status, stderr } = cloister(flat(code('fld.bin', 0xd9, 0x04, 0x25, 0, 0, 0, 0x40, ...HLT)))
  assert.is(status, 120)
  assert.match(
    stderr,
    /^cloister: the emulator stopped \(unimplemented\): an x87 instruction on MMIO, .*RIP 0x100000: instruction of 7 bytes/,
  )
})

test('a jump into nowhere is 126', () => {
  // mov rax, 0x123456789000; jmp rax
  const file = code('nowhere.bin', 0x48, 0xb8, 0, 0x90, 0x78, 0x56, 0x34, 0x12, 0, 0, 0xff, 0xe0)
  assert.is(cloister(flat(file)).status, 126)
})

test('an endless loop ends by its budgets with 124', () => {
  const report = work.path('budget.json')
  assert.is(cloister([...flat(hang), '--max-instructions', '1000000', '--report', report]).status, 124)
  const { exit, instructions } = JSON.parse(readFileSync(report, 'utf8'))
  assert.is(exit.reason, 'budget-instructions')
  assert.is(instructions, 1_000_000)
  const { status, stderr } = cloister([...flat(hang), '--timeout', '1'])
  assert.is(status, 124, stderr)
  assert.match(stderr, /budget-time/)
})

test('the flat sample prints on its console and halts', () => {
  const report = work.path('flat.json')
  const { status, stdout, stderr } = cloister([...flat(guest('flat.bin')), '--report', report])
  assert.is(status, 0, stderr)
  assert.match(stdout, /Hello from an ordinary guest\.\n/)
  assert.match(stdout, /The CPU says it is AuthenticAMD\.\n/)
  assert.match(stdout, /fib\(90\) = 2880067194370816120\n/)
  const data = JSON.parse(readFileSync(report, 'utf8'))
  assert.equal(Object.keys(data), [
    'schema',
    'type',
    'exit',
    'instructions',
    'seconds',
    'exits',
    'ghcb',
    'tdvmcall',
    'launchDigest',
    'vcpus',
  ])
  assert.is(data.schema, 1)
  assert.is(data.type, 'default')
  assert.is(data.exit.reason, 'halted')
  assert.is(data.vcpus, 1)
  assert.is(data.launchDigest, null)
  assert.ok(data.exits.KVM_EXIT_IO >= stdout.length)
})

test('the SEV-ES sample runs its #VC handler; GHCB events are counted', () => {
  const report = work.path('sev-es.json')
  const { status, stdout, stderr } = cloister([...flat(guest('sev-es.bin'), 'long64', '0x200000'), '--type', 'sev-es', '--report', report])
  assert.is(status, 0, stderr)
  assert.match(stdout, /Hello from an SEV-ES guest/)
  assert.match(stdout, /CPUID, through the GHCB: AuthenticAMD\n/)
  const data = JSON.parse(readFileSync(report, 'utf8'))
  assert.is(data.type, 'sev-es')
  assert.match(data.launchDigest, /^[0-9a-f]{64}$/)
  assert.ok(data.ghcb.SVM_EXIT_IOIO > 100)
  assert.ok(data.ghcb.SVM_EXIT_CPUID >= 1)
  assert.ok(data.ghcb.SVM_EXIT_MSR >= 1)
})

test('two runs are the same to the instruction', () => {
  const once = (name: string) => {
    const report = work.path(name)
    cloister([...flat(guest('flat.bin')), '--report', report])
    const { seconds: _, ...rest } = JSON.parse(readFileSync(report, 'utf8'))
    return rest
  }
  assert.equal(once('a.json'), once('b.json'))
})

test('--trace writes one line per exit', () => {
  const file = work.path('trace.txt')
  assert.is(cloister([...flat(guest('flat.bin')), '--trace', 'exits', '--trace-file', file]).status, 0)
  assert.ok(readFileSync(file, 'utf8').trimEnd().split('\n').length > 50)
})

test('serial input reaches the guest', () => {
  // wait for LSR.DR, read a byte, write it back twice, halt after a newline
  const program = [
    0x66,
    0xba,
    0xfd,
    0x03,
    0xec,
    0xa8,
    0x01,
    0x74,
    0xf7, // 1: mov dx, 0x3fd; in al, dx; test al, 1; jz 1b
    0x66,
    0xba,
    0xf8,
    0x03,
    0xec,
    0xee,
    0xee, // mov dx, 0x3f8; in al, dx; out dx, al; out dx, al
    0x3c,
    0x0a,
    0x75,
    0xec, // cmp al, 10; jne 1b
  ]
  const echo = code('echo.bin', ...program, ...HLT)
  const { status, stdout, stderr } = cloister([...flat(echo), '--timeout', '20'], { input: 'hi\n' })
  assert.is(status, 0, stderr)
  assert.is(stdout, 'hhii\n\n')
})

test('Ctrl-A X leaves with 130', () => {
  assert.is(cloister([...flat(hang), '--timeout', '30'], { input: '\x01x' }).status, 130)
})

test('SIGINT is 130 and the report is written', async () => {
  const report = work.path('interrupted.json')
  // mov dx, 0x3f8; mov al, 10; out dx, al; 1: jmp 1b
  const running = code('running.bin', 0x66, 0xba, 0xf8, 0x03, 0xb0, 0x0a, 0xee, 0xeb, 0xfe)
  const child = spawn(process.execPath, [command, ...flat(running), '--report', report], { stdio: ['pipe', 'pipe', 'ignore'] })
  child.stdout.once('data', () => child.kill('SIGINT'))
  const status = await new Promise((resolve) => child.on('exit', (c) => resolve(c)))
  assert.is(status, 130)
  assert.is(JSON.parse(readFileSync(report, 'utf8')).exit.reason, 'interrupted')
})

test('output to a closed pipe ends silently', () => {
  // 1: mov dx, 0x3f8; mov al, 'a'; out dx, al; mov al, 10; out dx, al; jmp 1b
  const chatty = code('chatty.bin', 0x66, 0xba, 0xf8, 0x03, 0xb0, 0x61, 0xee, 0xb0, 0x0a, 0xee, 0xeb, 0xf4)
  const line = `"${process.execPath}" "${command}" ${flat(chatty).join(' ')} --timeout 20 </dev/null | head -n 3`
  const { stdout, stderr } = spawnSync('bash', ['-c', line], { encoding: 'utf8', timeout: 60_000 })
  assert.is(stderr, '')
  assert.is(stdout, 'a\na\na\n')
})

test.run()
