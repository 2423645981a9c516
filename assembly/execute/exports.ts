/** Exports of the execution loop. */
export { invalidateLines, lookup } from '../decode/cache'
export { execute } from '../generated/execute'
