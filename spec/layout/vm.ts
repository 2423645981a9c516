/** Machine-wide, VM, memory-slot and backing structures. */
import { struct } from './struct.ts'

const global = struct(
  'GLOBAL',
  'Machine-wide state, at region GLOBAL',
  [
    ['FRAME_TOP', 'u32', 'first never-used address of linear memory'],
    ['FREE_FRAMES', 'u32', 'head of the list of freed 4 KiB frames'],
    ['LIMIT_PAGES', 'u32', 'size budget in 64 KiB pages (openKvm({ memory }))'],
    ['VCPU_COUNT', 'u32', 'live vCPUs of all VMs'],
    ['VCPUS', 'u32', 'their addresses', 1024],
    ['FREE_ARENAS', 'u32', 'head of the list of freed vCPU arenas'],
    ['KEYS', 'u64', 'memory-encryption key of each ASID, 16 bytes', 1024, 0x2000],
  ],
  0x10000,
)

const vm = struct(
  'VM',
  'One virtual machine',
  [
    ['VCPU_COUNT', 'u32', ''],
    ['ASID', 'u32', '0 = memory not encrypted'],
    ['C_BIT', 'u64', 'mask of the C-bit in a page-table entry, 0 = none'],
    ['PHYS_MASK', 'u64', 'mask of valid guest-physical address bits (51:12 part of a PTE), C-bit removed'],
    ['SEV', 'u32', '0 none, 1 SEV, 2 SEV-ES'],
    ['TYPE', 'u32', 'KVM_CREATE_VM type'],
    ['LEGACY_ES', 'u32', 'KVM_SEV_ES_INIT on type 0'],
    ['GHCB_VERSION', 'u32', ''],
    ['CLOCK', 'u64', 'virtual ns at the end of the last slice'],
    ['TSC_KHZ', 'u64', ''],
    ['SLOT_COUNT', 'u32', ''],
    ['SLOTS', 'u32', 'address of the SLOT array'],
    ['SLOT_MAP', 'u32', 'address of the u16 slot number + 1 per 2 MiB of GPA (0 none, 0xffff several): 8 GiB, then by search'],
    ['IRQCHIP', 'u32', '0 none, 1 full, 2 split'],
    ['KVM_STATE', 'u32', 'address of the in-kernel device block (see layout/irqchip)'],
    ['VCPUS', 'u32', 'addresses of its vCPUs by creation order', 1024],
    ['ID_MAP', 'u32', 'reserved'],
    ['LINUX', 'u32', 'Linux version whose KVM is modelled: 612 or 703'],
    ['HYPERCALL_EXITS', 'u32', 'KVM_CAP_EXIT_HYPERCALL mask'],
    ['USER_MSR_MASK', 'u32', 'KVM_CAP_X86_USER_SPACE_MSR mask'],
    ['BSP_ID', 'u32', 'KVM_SET_BOOT_CPU_ID'],
    ['VMSA_FEATURES', 'u64', 'SEV_FEATURES of its VMSAs'],
    ['SLOT_CAPACITY', 'u32', 'entries of the SLOT array'],
    [
      'PRIVATE_RANGES',
      'u32',
      'address of the page ranges with KVM_MEMORY_ATTRIBUTE_PRIVATE: sorted pairs of u64 page numbers [first, end)',
    ],
    ['PRIVATE_COUNT', 'u32', 'ranges in use'],
    ['PRIVATE_CAPACITY', 'u32', 'pages allocated for them'],
    ['MANUAL_PROTECT', 'u32', 'KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 1 KVM_GET_DIRTY_LOG clears nothing, 2 new bitmaps start all set'],
    ['RING_ENTRIES', 'u32', 'entries of the dirty ring of each vCPU, 0 = none'],
    ['RING_SOFT', 'u32', 'entries in use from which KVM_RUN leaves'],
    ['ZONES', 'u32', 'address of the coalesced zones: u64 address, u32 size, u32 1 = ports'],
    ['ZONE_COUNT', 'u32', ''],
    ['ZONE_FIRST', 'u32', "consumer's index of the coalesced ring as last seen"],
    ['ZONE_LAST', 'u32', "producer's index"],
    ['DISABLED_QUIRKS', 'u32', 'KVM_CAP_DISABLE_QUIRKS(2): QUIRK_*'],
    ['DISABLED_EXITS', 'u32', 'KVM_CAP_X86_DISABLE_EXITS: EXITS_*'],
    ['NO_PLATFORM_INFO', 'u32', 'KVM_CAP_MSR_PLATFORM_INFO: 1 = a guest cannot read MSR 0xce'],
    ['EMULATION_EXITS', 'u32', 'KVM_CAP_EXIT_ON_EMULATION_FAILURE'],
    ['APIC_BUS_NS', 'u64', 'KVM_CAP_X86_APIC_BUS_CYCLES_NS'],
    [
      'UNITS',
      'u32',
      'address of a u32 per 2 MiB of GPA (8 GiB): its 512 entries in a frame map, or 512 zeros if not all of it is ordinary memory of one slot',
    ],
    ['CLOCK_OFFSET', 'u64', 'kvmclock minus virtual time (KVM_SET_CLOCK)'],
    ['WALL_CLOCK', 'u64', 'MSR_KVM_WALL_CLOCK'],
    ['WALL_EPOCH', 'u64', 'ns since 1970 at virtual time 0'],
    ['OLD_CLOCK', 'u32', 'boot_vcpu_runs_old_kvmclock'],
    ['MASTER_CLOCK', 'u32', 'use_master_clock, as of the last update'],
  ],
  0x2000,
)

const slot = struct(
  'SLOT',
  'One memory slot',
  [
    ['GPA', 'u64', ''],
    ['SIZE', 'u64', ''],
    ['BACKING', 'u32', 'address of the BACKING, 0 = slot unused'],
    ['OFFSET_PAGES', 'u32', 'first page of the backing'],
    ['FLAGS', 'u32', 'KVM_MEM_* flags'],
    ['ID', 'u32', 'slot id (low 16 bits) and address space'],
    ['DIRTY_BITMAP', 'u32', 'address of the dirty bitmap, 0 = not logging'],
    ['PRIVATE', 'u32', 'BACKING of its guest_memfd, 0 = none (any more)'],
    ['PRIVATE_OFFSET', 'u32', 'first page in it'],
  ],
  64,
)

const backing = struct(
  'BACKING',
  'Anonymous host memory: pages are allocated on first touch',
  [
    ['PAGES', 'u32', ''],
    ['FRAMES', 'u32', 'address of the frame map: u32 linear frame address per page, 0 = not allocated'],
    ['REFERENCES', 'u32', ''],
    ['LENGTH', 'u32', 'bytes allocated for the frame map'],
  ],
  32,
)

const all = { vm, slot, backing, global }
export { all as vm }
