// Compiles every contracts/**/*.sol to contracts/artifacts/<Contract>.json: {contractName, abi, bytecode}; for those of
// contracts/sweep, which are verified on the chain, also runtimeBytecode and immutables: for each immutable, in the order
// of declaration, the offsets of its 32-byte words in there.
//
//   node contracts/build.mjs           write the artifacts
//   node contracts/build.mjs --check   write nothing; fail when an artifact is missing, stale or left over
//
// The same sources give the same bytes on every machine: the compiler is pinned by package-lock.json, the metadata hash
// is left out of the bytecode, and sources are named by their path inside contracts/.
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

const root = dirname(fileURLToPath(import.meta.url));
const artifactsDir = join(root, "artifacts");
const EXPECTED_WARNINGS = new Set(["5159"]); // selfdestruct is deprecated; the tests need it all the same

function readSources() {
  const paths = readdirSync(root, { recursive: true }).filter((path) => path.endsWith(".sol"));
  const named = paths.sort().map((path) => [path.split(sep).join("/"), { content: readFileSync(join(root, path), "utf8") }]);
  return Object.fromEntries(named);
}

function compile(sources) {
  const settings = {
    evmVersion: "prague",
    optimizer: { enabled: true, runs: 200 },
    metadata: { bytecodeHash: "none", appendCBOR: false },
    outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode"] } },
  };
  const output = JSON.parse(solc.compile(JSON.stringify({ language: "Solidity", sources, settings })));
  const problems = (output.errors ?? []).filter((problem) => !EXPECTED_WARNINGS.has(problem.errorCode));
  if (problems.length > 0) {
    throw new Error(problems.map((problem) => problem.formattedMessage).join("\n"));
  }
  return output.contracts;
}

/** Offsets by immutable; solc names each by the number of its declaration in the syntax tree, which changes with other files. */
function immutables(references) {
  const inOrder = Object.entries(references).sort(([one], [other]) => Number(one) - Number(other));
  return inOrder.map(([, places]) => places.map(({ start }) => start));
}

/** Map of file name to file text; contracts without bytecode (interfaces, abstract ones) have no artifact. */
function renderArtifacts(contracts) {
  const artifacts = new Map();
  for (const [source, byName] of Object.entries(contracts)) {
    for (const [contractName, { abi, evm }] of Object.entries(byName)) {
      if (evm.bytecode.object === "") continue;
      const file = `${contractName}.json`;
      if (artifacts.has(file)) throw new Error(`${source}: a second contract is named ${contractName}`);
      const artifact = { contractName, abi, bytecode: `0x${evm.bytecode.object}` };
      if (source.startsWith("sweep/")) {
        artifact.runtimeBytecode = `0x${evm.deployedBytecode.object}`;
        artifact.immutables = immutables(evm.deployedBytecode.immutableReferences);
      }
      artifacts.set(file, JSON.stringify(artifact, null, 2) + "\n");
    }
  }
  return artifacts;
}

function readArtifacts() {
  const names = readdirSync(artifactsDir).filter((name) => name.endsWith(".json"));
  return new Map(names.map((name) => [name, readFileSync(join(artifactsDir, name), "utf8")]));
}

mkdirSync(artifactsDir, { recursive: true });
const wanted = renderArtifacts(compile(readSources()));
const found = readArtifacts();
const stale = [...new Set([...wanted.keys(), ...found.keys()])].filter((name) => wanted.get(name) !== found.get(name));

if (process.argv.includes("--check")) {
  if (stale.length > 0) {
    console.error(`contracts: ${stale.join(", ")} out of step with the sources; run: make contracts`);
    process.exit(1);
  }
  console.log(`contracts: ${wanted.size} artifacts match their sources`);
} else {
  for (const name of stale) {
    if (wanted.has(name)) writeFileSync(join(artifactsDir, name), wanted.get(name));
    else rmSync(join(artifactsDir, name));
  }
  const where = relative(process.cwd(), artifactsDir) || ".";
  console.log(`contracts: ${wanted.size} artifacts in ${where}, ${stale.length} changed (solc ${solc.version()})`);
}
