// Failures of every kind that a caller can provoke. They leave the chat unchanged and no handle open.
import CDollop
import Foundation
import XCTest

@testable import Dollop

final class ErrorTests: DollopTestCase {
    func testInvalidModelsAreRejected() async throws {
        await expect(.io, "no-such-file") { try await Engine(contentsOf: URL(fileURLWithPath: "/no-such-file")) }
        await expect(.io) { try await Engine.plan(contentsOf: URL(fileURLWithPath: "/no-such-file")) }
        await expect(.invalid, "not a file URL") { try await Engine(contentsOf: URL(string: "https://a.b/c")!) }
        await expect(.unsupported, "folder") { try await Engine(contentsOf: self.folder) }
        let damaged = folder.appendingPathComponent("damaged.gguf")
        try Data(contentsOf: model).prefix(100_000).write(to: damaged)
        await expect(.malformed) { try await Engine(contentsOf: damaged) }
        try Data("not a model".utf8).write(to: damaged)
        await expect(.malformed) { try await Engine(contentsOf: damaged) }
    }

    func testOptionsOutOfRangeAreRejected() async throws {
        func open(_ change: (inout EngineOptions) -> Void) async throws -> Engine {
            var options = small
            change(&options)
            return try await Engine(contentsOf: model, options: options)
        }
        await expect(.invalid, "threads -1") { try await open { $0.threads = -1 } }
        await expect(.invalid, "bits -4") { try await open { $0.precision = .exact(bits: -4) } }
        await expect(.invalid) { try await open { $0.precision = .exact(bits: 5) } }
        await expect(.invalid) { try await open { $0.precision = .adaptive(quality: .nan) } }
        await expect(.invalid, "context") { try await open { $0.context = 1 << 40 } }
        await expect(.device) { try await open { $0.backend = .gpu(index: 99) } }

        let engine = try await open { _ in }
        await expect(.invalid) { try engine.detokenize([.max]) }
        await expect(.invalid, "NUL") { try engine.tokenize("a\0b") }
        await expect(.invalid, "context -1") { try await engine.chat(options: ChatOptions(context: -1)) }
        await expect(.invalid, "NUL") { try await engine.chat(options: ChatOptions(system: "\0")) }
        let chat = try await engine.chat(options: ChatOptions(system: "You are brief."))
        func send(_ change: (inout GenerateOptions) -> Void) async throws -> Reply {
            var options = short
            change(&options)
            return try await chat.reply(to: question, options: options)
        }
        await expect(.invalid, "maxTokens") { try await send { $0.maxTokens = -1 } }
        await expect(.invalid) { try await send { $0.sampling.temperature = -1 } }
        await expect(.invalid, "topK") { try await send { $0.sampling.topK = -1 } }
        await expect(.invalid) { try await send { $0.sampling.chain = "coffee" } }
        await expect(.invalid) { try await send { $0.targetTokensPerSecond = .nan } }
        await expect(.invalid, "NUL") { try await send { $0.stop = ["a\0b"] } }
        await expect(.invalid, "NUL") { try await send { $0.constraint = .regex("a\0b") } }
        await expect(.invalid, "NUL") { try await chat.reply(to: "a\0b") }
        await expect(.invalid, "JSON") { try await chat.setVariables(json: "[") }
        await expect(.invalid, "9999") { try await chat.setTime(Date(timeIntervalSince1970: 1e12)) }
        await expect(.invalid) { try await chat.regenerate(options: short).first { _ in true } }
        let answer = try await send { _ in }
        XCTAssertTrue(answer.text.contains("Paris"), "the chat is as it was")
    }

    func testAFullContextIsAnErrorOrSlides() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let chat = try await engine.chat(options: ChatOptions(context: 128, overflow: .error))
        await expect(.contextFull) { try await chat.reply(to: text(words: 400), options: short) }
        let none = try await chat.messages()
        XCTAssertEqual(none, [], "the message that failed is not in the conversation")
        let answer = try await chat.reply(to: question, options: short)
        XCTAssertTrue(answer.text.contains("France"), answer.text)

        let sliding = try await engine.chat(options: ChatOptions(context: 128, overflow: .slide))
        for _ in 0..<3 {
            let end = try await sliding.reply(to: text(words: 30), options: GenerateOptions(maxTokens: 4)).outcome
            XCTAssertTrue(end.generatedTokens > 0)
        }
    }

    func testEveryStatusOfTheHeaderHasACase() throws {
        for status in DollopError.Status.allCases {
            let name = String(cString: dollop_status_name(status.rawValue))
            let words = name.replacingOccurrences(of: "DOLLOP_", with: "").replacingOccurrences(of: "_", with: "")
            XCTAssertEqual(words.lowercased(), String(describing: status).lowercased())
        }
        let known = (1..<1000).filter { String(cString: dollop_status_name(Int32($0))) != "unknown status" }
        XCTAssertEqual(known.map(Int32.init), DollopError.Status.allCases.map(\.rawValue))
        XCTAssertThrowsError(try check(12345)) { XCTAssertEqual(($0 as? DollopError)?.status, .other) }
    }
}
