#!/usr/bin/env node
/** The command `cloister`. */
import { main } from './cli/main.ts'
import { tellV8 } from './cli/v8.ts'

tellV8()
void main(process.argv.slice(2))
