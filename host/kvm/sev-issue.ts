/**
 * SEV_ISSUE_CMD: the commands of /dev/sev in the order of checks of drivers/crypto/ccp/sev-dev.c (6.12 and 7.3 agree). The
 * driver sends INIT when it is loaded; a platform that FACTORY_RESET left uninitialised is initialised for the length of one
 * command, and again by the init command of the next SEV guest.
 */
import { SEV_ISSUE } from '../generated/kvm-abi.ts'
import { FIRMWARE_STATUS as FW, PLATFORM_STATE, SEV_SIZE, SNP_VLEK } from '../generated/psp.ts'
import { viewOf } from './dispatch.ts'
import type { ErrnoName, Kernel } from './kernel.ts'
import { VmFd } from './vm.ts'

export const SEV_DEV = 'drivers/crypto/ccp/sev-dev.c'
const CHAIN = 3 * SEV_SIZE.CERTIFICATE
/** The page allocator's largest piece: PAGE_SIZE << MAX_PAGE_ORDER. */
const ALLOCATION_MAX = 4096 << 10

/** One command in flight. */
export interface Issue {
  readonly kernel: Kernel
  readonly name: string
  /** The user's data pointer. */
  readonly data: bigint
  readonly writable: boolean
  /** sev_issue_cmd.error: what the caller passed until the firmware answers. */
  error: number
}

function refuse(issue: Issue, code: ErrnoName, reason: string, where: string): number {
  return issue.kernel.refuse(code, issue.name, reason, `${SEV_DEV} ${where}`)
}

/** __sev_do_cmd_locked: a firmware status is 0, or -EIO with the code for the caller. */
function firmwareResult(issue: Issue, status: number): number {
  issue.error = status
  if (status === FW.SUCCESS) return 0
  const name = Object.entries(FW).find(([, code]) => code === status)?.[0] ?? 'unknown'
  return issue.kernel.refuse('EIO', issue.name, `firmware status ${name} (0x${status.toString(16)})`, `${SEV_DEV} __sev_do_cmd_locked`)
}

const fault = (issue: Issue, what?: string): number => issue.kernel.badPointer(issue.name, what)

function readOnly(issue: Issue, where: string): number {
  return refuse(issue, 'EPERM', 'the file descriptor is not open for writing', where)
}

/** sev_move_to_init_state; undone by leave() (__sev_firmware_shutdown, which takes SNP along). */
function enter(issue: Issue): boolean {
  const { psp } = issue.kernel
  if (psp.initialised) return false
  psp.initialised = true
  issue.error = FW.SUCCESS
  return true
}

function leave(issue: Issue, entered: boolean): void {
  if (!entered) return
  issue.kernel.psp.shutdown()
  issue.kernel.psp.snp.shutdown()
}

function factoryReset(issue: Issue): number {
  const where = 'sev_ioctl_do_reset'
  if (!issue.writable) return readOnly(issue, where)
  const { psp } = issue.kernel
  issue.error = FW.SUCCESS
  if (psp.state === PLATFORM_STATE.WORKING) return refuse(issue, 'EBUSY', 'the platform manages guests', where)
  if (psp.state === PLATFORM_STATE.INIT) psp.shutdown()
  return firmwareResult(issue, psp.factoryReset())
}

function platformStatus(issue: Issue): number {
  issue.error = FW.SUCCESS
  return issue.kernel.memory.copyOut(issue.data, issue.kernel.psp.status()) ? 0 : fault(issue)
}

function generate(issue: Issue, pek: boolean): number {
  if (!issue.writable) return readOnly(issue, 'sev_ioctl_do_pek_pdh_gen')
  const { psp } = issue.kernel
  const entered = enter(issue)
  const result = firmwareResult(issue, pek ? psp.generatePek() : psp.generatePdh())
  leave(issue, entered)
  return result
}

/** Reads a struct, lets `run` change it; written back even when the firmware refused, as its lengths are answers. */
function withStruct(
  issue: Issue,
  size: number,
  check: (view: DataView) => number,
  run: (view: DataView) => { status: number; out: readonly (readonly [bigint, Uint8Array])[] },
  needsInit: boolean,
): number {
  const { memory } = issue.kernel
  const input = memory.copyIn(issue.data, size)
  if (input === null) return fault(issue)
  const view = viewOf(input)
  const refused = check(view)
  if (refused < 0) return refused
  const entered = needsInit && enter(issue)
  const { status, out } = run(view)
  const result = firmwareResult(issue, status)
  leave(issue, entered)
  if (!memory.copyOut(issue.data, input)) return fault(issue)
  if (result < 0) return result
  for (const [address, bytes] of out) if (!memory.copyOut(address, bytes)) return fault(issue, 'a buffer is not in a mapping')
  return result
}

/** address u64, length u32 (packed): the PEK without signatures. */
function pekCsr(issue: Issue): number {
  const where = 'sev_ioctl_do_pek_csr'
  if (!issue.writable) return readOnly(issue, where)
  const { psp } = issue.kernel
  return withStruct(
    issue,
    12,
    (view) =>
      view.getBigUint64(0, true) !== 0n && view.getUint32(8, true) > SEV_SIZE.BLOB_MAX
        ? refuse(issue, 'EFAULT', `a buffer above ${SEV_SIZE.BLOB_MAX} bytes`, where)
        : 0,
    (view) => {
      const [address, length] = [view.getBigUint64(0, true), view.getUint32(8, true)]
      if (psp.state !== PLATFORM_STATE.INIT) return { status: FW.INVALID_PLATFORM_STATE, out: [] }
      view.setUint32(8, SEV_SIZE.CERTIFICATE, true)
      if (address === 0n || length < SEV_SIZE.CERTIFICATE) return { status: FW.INVALID_LEN, out: [] }
      return { status: FW.SUCCESS, out: [[address, psp.csr()]] }
    },
    true,
  )
}

/** psp_copy_user_blob. */
function blob(issue: Issue, address: bigint, length: number): Uint8Array<ArrayBuffer> | number {
  const where = 'psp_copy_user_blob'
  if (address === 0n || length === 0) return refuse(issue, 'EINVAL', 'a blob without address or length', where)
  if (length > SEV_SIZE.BLOB_MAX) return refuse(issue, 'EINVAL', `a blob of ${length} bytes (at most ${SEV_SIZE.BLOB_MAX})`, where)
  return issue.kernel.memory.copyIn(address, length) ?? fault(issue, 'a blob address is not in a mapping')
}

/** PEK address u64, length u32, OCA address u64, length u32 (packed). */
function pekCertImport(issue: Issue): number {
  if (!issue.writable) return readOnly(issue, 'sev_ioctl_do_pek_import')
  const input = issue.kernel.memory.copyIn(issue.data, 24)
  if (input === null) return fault(issue)
  const view = viewOf(input)
  const pek = blob(issue, view.getBigUint64(0, true), view.getUint32(8, true))
  if (typeof pek === 'number') return pek
  const oca = blob(issue, view.getBigUint64(12, true), view.getUint32(20, true))
  if (typeof oca === 'number') return oca
  const entered = enter(issue)
  const result = firmwareResult(issue, issue.kernel.psp.importPek(pek, oca))
  leave(issue, entered)
  return result
}

/** PDH address u64, length u32, chain address u64, length u32 (packed). Any zero asks for the lengths. */
function pdhCertExport(issue: Issue): number {
  const where = 'sev_ioctl_do_pdh_export'
  const { psp } = issue.kernel
  const fields = (view: DataView): readonly [bigint, number, bigint, number] => [
    view.getBigUint64(0, true),
    view.getUint32(8, true),
    view.getBigUint64(12, true),
    view.getUint32(20, true),
  ]
  const query = (view: DataView): boolean => fields(view).some((field) => BigInt(field) === 0n)
  return withStruct(
    issue,
    24,
    (view) => {
      const [, pdhLength, , chainLength] = fields(view)
      if (!query(view) && (pdhLength > SEV_SIZE.BLOB_MAX || chainLength > SEV_SIZE.BLOB_MAX))
        return refuse(issue, 'EFAULT', `a buffer above ${SEV_SIZE.BLOB_MAX} bytes`, where)
      return !psp.initialised && !issue.writable ? readOnly(issue, where) : 0
    },
    (view) => {
      const [pdhAddress, pdhLength, chainAddress, chainLength] = fields(view)
      const short = query(view) || pdhLength < SEV_SIZE.CERTIFICATE || chainLength < CHAIN
      view.setUint32(8, SEV_SIZE.CERTIFICATE, true)
      view.setUint32(20, CHAIN, true)
      if (short) return { status: FW.INVALID_LEN, out: [] }
      const { pdh, chain } = psp.certificates()
      return {
        status: FW.SUCCESS,
        out: [
          [pdhAddress, pdh],
          [chainAddress, chain],
        ],
      }
    },
    true,
  )
}

/** The ids of both sockets, 64 bytes each; this machine has one socket. */
function getId(issue: Issue): number {
  issue.error = FW.SUCCESS
  return issue.kernel.memory.copyOut(issue.data, issue.kernel.psp.chipId()) ? 0 : fault(issue)
}

/** address u64, length u32 (packed); in any platform state, for anybody. */
function getId2(issue: Issue): number {
  const id = issue.kernel.psp.chipId()
  return withStruct(
    issue,
    12,
    (view) =>
      view.getBigUint64(0, true) !== 0n && view.getUint32(8, true) > ALLOCATION_MAX
        ? refuse(issue, 'ENOMEM', `the kernel cannot allocate ${view.getUint32(8, true)} bytes`, 'sev_ioctl_do_get_id2')
        : 0,
    (view) => {
      const [address, length] = [view.getBigUint64(0, true), view.getUint32(8, true)]
      view.setUint32(8, id.length, true)
      return address === 0n || length < id.length ? { status: FW.INVALID_LEN, out: [] } : { status: FW.SUCCESS, out: [[address, id]] }
    },
    false,
  )
}

function noData(issue: Issue, where: string): number {
  return refuse(issue, 'EINVAL', 'sev_issue_cmd.data is 0', where)
}

function snpPlatformStatus(issue: Issue): number {
  if (issue.data === 0n) return noData(issue, 'sev_ioctl_do_snp_platform_status')
  const { kernel } = issue
  issue.error = FW.SUCCESS
  const guests = kernel.files.filter((file) => file instanceof VmFd && file.sev !== null && file.sev.snp !== null)
  return kernel.memory.copyOut(issue.data, kernel.psp.snp.status(guests.length)) ? 0 : fault(issue)
}

/** What is installed is committed already: nothing to do for the firmware. */
function snpCommit(issue: Issue): number {
  return firmwareResult(issue, FW.SUCCESS)
}

/** Checks that SNP_SET_CONFIG and SNP_VLEK_LOAD share. */
function snpWrite(issue: Issue, where: string, size: number): Uint8Array<ArrayBuffer> | number {
  const { kernel } = issue
  if (issue.data === 0n) return noData(issue, where)
  if (!issue.writable) return readOnly(issue, where)
  if (!kernel.psp.snp.initialised) return refuse(issue, 'ENODEV', 'SNP is not initialised (a factory reset shut the firmware down)', where)
  return kernel.memory.copyIn(issue.data, size) ?? fault(issue)
}

function snpSetConfig(issue: Issue): number {
  const input = snpWrite(issue, 'sev_ioctl_do_snp_set_config', 64)
  return typeof input === 'number' ? input : firmwareResult(issue, issue.kernel.psp.snp.configure(input))
}

/** struct sev_user_data_snp_vlek_load: length u32, version u8, reserved, address u64 of the wrapped hashstick. */
function snpVlekLoad(issue: Issue): number {
  const where = 'sev_ioctl_do_snp_vlek_load'
  const input = snpWrite(issue, where, 16)
  if (typeof input === 'number') return input
  const view = viewOf(input)
  if (view.getUint32(0, true) !== 16 || view.getUint8(4) !== 0)
    return refuse(issue, 'EINVAL', 'len must be 16 and vlek_wrapped_version 0', where)
  const wrapped = blob(issue, view.getBigUint64(8, true), SNP_VLEK.SIZE)
  return typeof wrapped === 'number' ? wrapped : firmwareResult(issue, issue.kernel.psp.snp.loadVlek(wrapped))
}

export const ISSUE_COMMANDS: ReadonlyMap<number, (issue: Issue) => number> = new Map([
  [SEV_ISSUE.SEV_FACTORY_RESET, factoryReset],
  [SEV_ISSUE.SEV_PLATFORM_STATUS, platformStatus],
  [SEV_ISSUE.SEV_PEK_GEN, (issue: Issue) => generate(issue, true)],
  [SEV_ISSUE.SEV_PEK_CSR, pekCsr],
  [SEV_ISSUE.SEV_PDH_GEN, (issue: Issue) => generate(issue, false)],
  [SEV_ISSUE.SEV_PDH_CERT_EXPORT, pdhCertExport],
  [SEV_ISSUE.SEV_PEK_CERT_IMPORT, pekCertImport],
  [SEV_ISSUE.SEV_GET_ID, getId],
  [SEV_ISSUE.SEV_GET_ID2, getId2],
  [SEV_ISSUE.SNP_PLATFORM_STATUS, snpPlatformStatus],
  [SEV_ISSUE.SNP_COMMIT, snpCommit],
  [SEV_ISSUE.SNP_SET_CONFIG, snpSetConfig],
  [SEV_ISSUE.SNP_VLEK_LOAD, snpVlekLoad],
])
