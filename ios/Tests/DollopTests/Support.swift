// Shared by all tests: the default model, options, and a check that no handle stays open.
import CDollop
import Foundation
import XCTest

@testable import Dollop

/// The repository's folder.
let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()

/// The default model, a Dollop file.
let model = root.appendingPathComponent("models/smollm2-moe.gguf")

let question = "What is the capital of France?"

/// Short answers that are the same every time.
let short = GenerateOptions(maxTokens: 24, sampling: .greedy)

/// Long answers, to be stopped.
let long = GenerateOptions(maxTokens: 400, sampling: .greedy, ignoreEos: true)

/// A context that fits every budget here, and one thread, because threads spin while they wait for each other.
// With AMX, chunks of 16 or more tokens give other bits (docs/cpu.md), and the last token of a reused prompt is computed alone.
let small = EngineOptions(precision: .exact(bits: 4), threads: 1, context: 512, chunk: 8)

/// Options with streamed experts: the smallest budget that works, plus `spare` bytes.
func streamed(spare: UInt64 = 8 << 20) async throws -> EngineOptions {
    var options = small
    options.memoryBytes = try await Engine.plan(contentsOf: model, options: small).smallestBytes + spare
    return options
}

/// A text of about `words` tokens.
func text(words: Int) -> String {
    (0..<words).map { ["river", "stone", "seven", "green", "paper"][$0 * 7 % 5] }.joined(separator: " ")
}

/// Reads a stream to its end. Returns its text, and its outcome if it has one.
func collect(_ stream: AsyncThrowingStream<Event, any Error>) async throws -> (text: String, end: Outcome?) {
    var (text, end) = ("", Outcome?.none)
    for try await event in stream {
        text += event.text ?? ""
        if case .done(let outcome) = event { end = outcome }
    }
    return (text, end)
}

/// Waits until `condition` holds, at most 30 s.
func eventually(_ what: String, _ condition: () throws -> Bool) async throws {
    for _ in 0..<3000 {
        if try condition() { return }
        try await Task.sleep(nanoseconds: 10_000_000)
    }
    XCTFail("timed out: \(what)")
}

/// Checks that `body` throws a `DollopError` with this status, whose message contains `part`.
func expect<Value>(
    _ status: DollopError.Status, _ part: String = "", file: StaticString = #filePath, line: UInt = #line,
    _ body: () async throws -> Value
) async {
    do {
        let value = try await body()
        XCTFail("no error, but \(value)", file: file, line: line)
    } catch let error as DollopError {
        XCTAssertEqual(error.status, status, error.message, file: file, line: line)
        XCTAssertTrue(part.isEmpty || error.message.contains(part), error.message, file: file, line: line)
        XCTAssertEqual(error.localizedDescription, error.message, file: file, line: line)
    } catch {
        XCTFail("not a DollopError: \(error)", file: file, line: line)
    }
}

/// The base class of tests. Each test has a temporary folder. After it, no handle may be open.
class DollopTestCase: XCTestCase {
    private(set) var folder = URL(fileURLWithPath: "/")

    override func setUp() async throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("dollop-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    override func tearDown() async throws {
        try FileManager.default.removeItem(at: folder)
        // A generating thread may still be ending.
        try await eventually("all handles closed") { dollop_open_handles() == 0 }
    }
}
