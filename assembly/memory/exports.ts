/** Exports of the memory room. */
export { allocArena, allocPages, frameAlloc, frameFree, freeArena, freePages, memoryInit, memoryTop } from './frames'
export { vcpuRegister, vcpuUnregister } from './vcpus'
export { backingCreate, backingDiscard, backingFree, backingRetain } from './backing'
export { dirtyLog, slotFind, slotSet, slotsFree } from './slots'
export { flushEverywhere, flushTlb, flushTlbLocal, invalidatePage, selectTlb } from './tlb'
export { setKey } from './views'
export { backingInfo, backingRead, backingWrite, gpaRead, gpaWrite, pspDecrypt, pspEncrypt, pspRead, pspWrite } from './physical'
export { commitModify, fetchAddress, modifyMem, probe, readBytes, readMem, sysRead, sysWrite, writeBytes, writeMem } from './access'
