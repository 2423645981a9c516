/** The policy table against the dispatcher: every firm cell is reached through real state transitions. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import {
  ERRNO,
  type Kvm,
  openKvm,
  parseProfile,
  POLICY_TYPES,
  policyLines,
  policyTable,
  REQUEST,
  type Vcpu,
  type Vm,
  type VmType,
} from 'cloister'

const open = (options: Parameters<typeof openKvm>[0] = {}): Promise<Kvm> => openKvm({ memory: 256 << 20, ...options })

interface State {
  kvm: Kvm
  vm: Vm
  vcpu: Vcpu
  address: bigint
}

/** A VM of this type with an irqchip, PIT and one vCPU; `after` = launched, its state protected where the type does that. */
async function reach(type: VmType, after: boolean): Promise<State> {
  const kvm = await open()
  const vm = kvm.createVm(type)
  if (type !== 'default') vm.sevInit()
  vm.createIrqchip()
  vm.createPit2()
  const memory = kvm.mmap(-1, 0x10000)
  vm.setUserMemoryRegion({
    slot: 0,
    flags: type === 'default' ? 1 : 0,
    guestPhysAddr: 0,
    memorySize: 0x10000,
    userspaceAddr: memory.address,
  })
  const vcpu = vm.createVcpu(0)
  vcpu.setCpuid2(kvm.supportedCpuid())
  if (after && type !== 'default') {
    const es = type.startsWith('sev-es')
    vm.launchStart({ policy: es ? 5 : 1 })
    vm.launchUpdateData(memory.address, 4096)
    if (es) vm.launchUpdateVmsa()
    vm.launchMeasure()
    vm.launchFinish()
  }
  return { kvm, vm, vcpu, address: memory.address }
}

/** A correct argument for each request that needs more than zeros. */
function argument({ kvm, vcpu, address }: State, name: string, size: number): Uint8Array | number {
  const bytes = new Uint8Array(size)
  const view = new DataView(bytes.buffer)
  const pair: Record<string, keyof typeof REQUEST> = {
    KVM_SET_SREGS: 'KVM_GET_SREGS',
    KVM_SET_SREGS2: 'KVM_GET_SREGS2',
    KVM_SET_VCPU_EVENTS: 'KVM_GET_VCPU_EVENTS',
    KVM_SET_LAPIC: 'KVM_GET_LAPIC',
    KVM_SET_REGS: 'KVM_GET_REGS',
    KVM_SET_XSAVE: 'KVM_GET_XSAVE',
    KVM_SET_FPU: 'KVM_GET_FPU',
    KVM_SET_XCRS: 'KVM_GET_XCRS',
    KVM_SET_DEBUGREGS: 'KVM_GET_DEBUGREGS',
  }
  const get = pair[name]
  if (get !== undefined) kvm.ioctl(vcpu.fd, REQUEST[get], bytes)
  if (name.endsWith('ONE_REG')) {
    // IA32_TSC_AUX is passed through to SEV-ES guests, IA32_TSC_ADJUST is not.
    view.setBigUint64(0, 0x2030_0002_0000_003bn, true)
    view.setBigUint64(8, address + 0x8000n, true)
  }
  if (name === 'KVM_MEMORY_ENCRYPT_REG_REGION') {
    view.setBigUint64(0, address, true)
    view.setBigUint64(8, 0x1000n, true)
  }
  if (name === 'KVM_IOEVENTFD') view.setInt32(20, kvm.eventfd(), true)
  if (name === 'KVM_PRE_FAULT_MEMORY') view.setBigUint64(8, 0x1000n, true)
  if (name === 'KVM_GET_SUPPORTED_CPUID' || name === 'KVM_GET_CPUID2') {
    const big = new Uint8Array(8 + 256 * 40)
    new DataView(big.buffer).setUint32(0, 256, true)
    return big
  }
  if (name.includes('MSR') && name.endsWith('INDEX_LIST')) {
    const big = new Uint8Array(4 + 4 * 512)
    new DataView(big.buffer).setUint32(0, 512, true)
    return big
  }
  return bytes
}

/** Needs more than one well-formed struct, or is checked elsewhere. */
const ELSEWHERE = new Set(['KVM_RUN', 'KVM_CREATE_VM', 'KVM_CREATE_VCPU', 'KVM_SET_USER_MEMORY_REGION', 'KVM_SET_PIT2', 'KVM_SET_IRQCHIP'])
/** Linux serves these; Cloister names them as unimplemented. */
const GAPS = new Set<string>()

for (const type of ['default', 'sev', 'sev-legacy', 'sev-es', 'sev-es-legacy'] as const) {
  for (const phase of ['before', 'after'] as const) {
    test(`${type}, ${phase} the launch: every firm cell`, async () => {
      const state = await reach(type, phase === 'after')
      const { kvm, vm, vcpu } = state
      const system = kvm.open('/dev/kvm')
      let firm = 0
      for (const line of policyLines()) {
        if (line.type !== type || line.phase !== phase || line.conditional || line.result === 'special') continue
        const name = line.ioctl.split('@')[0] as keyof typeof REQUEST
        if (line.request === null || ELSEWHERE.has(name) || !(name in REQUEST)) continue
        const row = policyTable().get(line.ioctl)
        const size = (REQUEST[name] >>> 16) & 0x3fff
        const fd = row?.scope.startsWith('system') ? system : row?.scope === 'vcpu' ? vcpu.fd : vm.fd
        const arg = size === 0 ? 0 : argument(state, name, name === 'KVM_MEMORY_ENCRYPT_OP' ? 24 : size)
        const result = kvm.ioctl(fd, REQUEST[name], arg)
        const where = `${line.ioctl} ${type} ${phase}: ${kvm.lastRefusal()?.reason}`
        if (GAPS.has(name)) {
          assert.is(result, -ERRNO.ENOSYS, where)
          assert.is(kvm.lastRefusal()?.unimplemented, true, where)
        } else if (line.result === 'error') assert.is(result, -ERRNO[line.errno as keyof typeof ERRNO], where)
        else assert.ok(result >= 0, where)
        if (line.result === 'ok-zeros')
          assert.ok(
            (arg as Uint8Array).every((b) => b === 0),
            where,
          )
        firm++
      }
      assert.ok(firm > 25, String(firm))
      assert.equal(kvm.kernel.internalErrors, [])
    })
  }
}

test('every row of the table has a handler', async () => {
  const state = await reach('default', false)
  const { kvm, vm, vcpu } = state
  const system = kvm.open('/dev/kvm')
  for (const row of policyTable().values()) {
    const name = row.ioctl.split(/[@ ]/)[0] as keyof typeof REQUEST
    if (row.request === null || !(name in REQUEST)) continue
    const fds = { system, vm: vm.fd, vcpu: vcpu.fd, 'system+vm': vm.fd, 'vm+vcpu': vcpu.fd }
    kvm.ioctl(fds[row.scope], REQUEST[name], name === 'KVM_RUN' ? 1 : new Uint8Array(0))
    assert.is.not(kvm.lastRefusal()?.reason, 'no such request on this kind of file descriptor', row.ioctl)
  }
  assert.equal(kvm.kernel.internalErrors, [])
})

test('unknown requests: -ENOTTY on VMs, -EINVAL elsewhere', async () => {
  const { kvm, vm, vcpu } = await reach('sev-es', true)
  assert.is(kvm.ioctl(vm.fd, 0xaeff, 0), -ERRNO.ENOTTY)
  assert.is(kvm.ioctl(vcpu.fd, 0xaeff, 0), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(kvm.open('/dev/kvm'), 0xaeff, 0), -ERRNO.EINVAL)
  assert.is(kvm.ioctl(kvm.open('/dev/sev'), 0xaeff, 0), -ERRNO.EINVAL)
})

test('the device outlives what it was opened with; a dead VM is -EIO', async () => {
  const { kvm, vm, vcpu } = await reach('default', false)
  assert.is(kvm.close(vm.fd), 0)
  assert.is(vcpu.getMpState(), 0)
  vm.file.kill('a test')
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_REGS, new Uint8Array(144)), -ERRNO.EIO)
  assert.is(vcpu.runRaw(1), -ERRNO.EIO)
  assert.is(kvm.close(vcpu.fd), 0)
})

test('profiles: rfc-2020 replaces cells of TDX and legacy SEV-ES only', () => {
  const upstream = policyLines('upstream')
  const rfc = policyLines('rfc-2020')
  assert.is(upstream.length, rfc.length)
  const changed = rfc.filter((line, i) => line.result !== upstream[i]?.result || line.errno !== upstream[i]?.errno)
  assert.ok(changed.length > 10)
  assert.ok(changed.every((line) => line.type === 'tdx' || line.type === 'sev-es-legacy'))
  for (const line of upstream) {
    assert.ok(POLICY_TYPES.includes(line.type))
    if (line.result === 'error') assert.ok(line.errno !== null && line.errno in ERRNO, line.ioctl)
  }
})

test('TDX and SNP VMs: what can be reached answers as Linux does, the launch is named as missing', async () => {
  const intel = await open({ host: 'intel' })
  const td = intel.createVm('tdx')
  const firm = [
    ['KVM_CREATE_IRQCHIP', 'ENOTTY'],
    ['KVM_GET_IRQCHIP', 'ENXIO'],
    ['KVM_CREATE_PIT2', 'ENOENT'],
    ['KVM_MEMORY_ENCRYPT_REG_REGION', 'ENOTTY'],
    ['KVM_CREATE_VCPU', 'EIO'],
  ] as const
  for (const [name, errno] of firm) {
    const size = (REQUEST[name] >>> 16) & 0x3fff
    assert.is(intel.ioctl(td.fd, REQUEST[name], size === 0 ? 0 : new Uint8Array(size)), -ERRNO[errno], name)
  }
  td.enableCap('KVM_CAP_SPLIT_IRQCHIP', [24])
  assert.is(intel.ioctl(td.fd, REQUEST.KVM_MEMORY_ENCRYPT_OP, new Uint8Array(24)), -ERRNO.EFAULT)
  for (const [cap, want] of [
    ['KVM_CAP_X86_SMM', 0],
    ['KVM_CAP_READONLY_MEM', 0],
    ['KVM_CAP_SYNC_REGS', 0],
    ['KVM_CAP_MEMORY_ATTRIBUTES', 8],
    ['KVM_CAP_MULTI_ADDRESS_SPACE', 1],
  ] as const) {
    assert.is(td.checkExtension(cap), want, cap)
  }
  const amd = await open()
  const snp = amd.createVm('snp')
  snp.sevInit()
  const vcpu = snp.createVcpu(0)
  const onePage = new Uint8Array(64)
  onePage[9] = 0x10
  assert.is(amd.ioctl(vcpu.fd, REQUEST.KVM_PRE_FAULT_MEMORY, onePage), -ERRNO.EOPNOTSUPP)
  assert.is(vcpu.run().reason, 'KVM_EXIT_FAIL_ENTRY')
  assert.is(snp.memoryEncrypt('KVM_SEV_SNP_LAUNCH_FINISH', new Uint8Array(88)).errno, -ERRNO.EINVAL)
  assert.equal([...intel.kernel.internalErrors, ...amd.kernel.internalErrors], [])
})

test('profiles of the caller are data', async () => {
  const text = JSON.stringify({
    name: 'strict',
    overlays: [
      { ioctls: ['KVM_GET_REGS'], types: ['default'], cell: 'error:EPERM; not here' },
      { ioctls: ['KVM_GET_FPU'], types: ['default'], cell: 'ok-zeros' },
    ],
  })
  const kvm = await open({ profile: parseProfile(text) })
  const vcpu = kvm.createVm('default').createVcpu(0)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_REGS, new Uint8Array(144)), -ERRNO.EPERM)
  assert.match(kvm.lastRefusal()?.source ?? '', /profile strict/)
  const fpu = new Uint8Array(416).fill(1)
  assert.is(kvm.ioctl(vcpu.fd, REQUEST.KVM_GET_FPU, fpu), 0)
  assert.ok(fpu.every((b) => b === 0))
  for (const bad of [
    '',
    '[]',
    '{"name":"x","overlays":[{}]}',
    '{"name":"x","base":"y","overlays":[]}',
    '{"name":"x","overlays":[{"ioctls":["KVM_X"],"types":[],"cell":"ok"}]}',
    '{"name":"x","overlays":[{"ioctls":["KVM_RUN"],"types":["snp"],"cell":"error:EWHAT"}]}',
  ]) {
    assert.throws(() => parseProfile(bad), /profile:/)
  }
})

test('hostile input: random requests and bytes never throw or trap', async () => {
  let seed = 12345
  const random = (n: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0
    return Math.floor((seed / 2 ** 32) * n)
  }
  for (const type of ['default', 'sev', 'sev-es', 'sev-es-legacy', 'snp'] as const) {
    const kvm = await open()
    const vm = kvm.createVm(type)
    if (random(2) && type !== 'default') vm.sevInit()
    if (random(2)) vm.createIrqchip()
    const vcpu = vm.createVcpu(0)
    const memory = kvm.mmap(-1, 0x4000)
    const fds = [vm.fd, vcpu.fd, kvm.open('/dev/kvm'), kvm.open('/dev/sev')]
    const requests = [...Object.values(REQUEST), 0xc0105300]
    for (let i = 0; i < 6000; i++) {
      const request = requests[random(requests.length)] as number
      if (
        request === REQUEST.KVM_RUN ||
        request === REQUEST.KVM_CREATE_VM ||
        request === REQUEST.KVM_CREATE_VCPU ||
        request === REQUEST.KVM_GET_STATS_FD
      )
        continue
      const bytes = new Uint8Array(random(3) ? 4200 : random(200))
      const fill = random(4)
      for (let j = 0; j < Math.min(bytes.length, 64); j++)
        bytes[j] = fill === 0 ? 255 : fill === 1 ? random(256) : fill === 2 ? random(3) : 0
      if (bytes.length >= 32 && random(2)) {
        const view = new DataView(bytes.buffer)
        if (random(2)) view.setUint32(0, random(30), true)
        view.setBigUint64(8, memory.address + BigInt(random(0x5000)), true)
        view.setBigUint64(16, random(2) ? BigInt(random(0x5000)) : memory.address, true)
      }
      const scalars = [0, -1, 2 ** 40, Number.NaN, -1n, 1n << 63n, memory.address, memory.address + 0x3ff0n, random(5000)]
      const arg = random(4) ? bytes : (scalars[random(scalars.length)] as number | bigint)
      const result = kvm.ioctl(fds[random(4)] as number, request, arg)
      assert.ok(Number.isInteger(result), `${request.toString(16)} gave ${result}`)
    }
    assert.equal(kvm.kernel.internalErrors, [], type)
  }
})

test.run()
