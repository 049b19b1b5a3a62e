// Saving and restoring conversations.
import CDollop
import Foundation
import XCTest

@testable import Dollop

final class SaveTests: DollopTestCase {
    func testARestoredChatGeneratesTheSameText() async throws {
        let file = folder.appendingPathComponent("chat")
        var engine: Engine? = try await Engine(contentsOf: model, options: small)
        var chat: Chat? = try await engine!.chat(options: ChatOptions(system: "You are brief."))
        _ = try await chat!.reply(to: question, options: short)
        let bytes = try await chat!.save(to: file)
        let size = try FileManager.default.attributesOfItem(atPath: file.path)[.size] as? UInt64
        XCTAssertEqual(bytes, size)
        let saved = try await chat!.messages()
        let want = try await chat!.reply(to: "And what is it known for?", options: short)
        (chat, engine) = (nil, nil)

        // In another engine with streamed experts. At exact precision, streaming does not change results.
        let other = try await Engine(contentsOf: model, options: try await streamed())
        let restored = try await Chat(other, contentsOf: file)
        let messages = try await restored.messages()
        XCTAssertEqual(messages, saved)
        let answer = try await restored.reply(to: "And what is it known for?", options: short)
        XCTAssertEqual(answer.text, want.text)
        XCTAssertEqual(answer.outcome.reusedTokens, want.outcome.reusedTokens, "nothing is computed again")
        XCTAssertTrue(answer.outcome.reusedTokens > 20)
    }

    func testAnAnswerIsStoppedAndSaved() async throws {
        let file = folder.appendingPathComponent("chat")
        let engine = try await Engine(contentsOf: model, options: small)
        let chat = try await engine.chat()
        let tokens = Protected(0)
        let consumer = Task {
            var stop: StopReason?
            for try await event in chat.send(question, options: long) {
                if case .token = event { tokens { $0 += 1 } }
                if case .done(let end) = event { stop = end.stop }
            }
            return stop
        }
        try await eventually("tokens") { tokens { $0 >= 3 } }
        let bytes = try await chat.stopAndSave(to: file)
        XCTAssertTrue(bytes > 1000)
        let stop = try await consumer.value
        XCTAssertEqual(stop, .cancelled)
        let saved = try await chat.messages()
        let restored = try await Chat(engine, contentsOf: file).messages()
        XCTAssertEqual(restored, saved)

        // Also without a consumer. The generating thread then waits for one, so saving must not wait for the end of the answer.
        let unread = chat.send("Go on.", options: long)
        try await Task.sleep(nanoseconds: 1_000_000_000)
        try await chat.stopAndSave(to: file)
        let end = try await collect(unread).end
        XCTAssertEqual(try XCTUnwrap(end).stop, .cancelled)
    }

    func testInvalidSessionFilesAreRejected() async throws {
        let file = folder.appendingPathComponent("chat")
        let engine = try await Engine(contentsOf: model, options: small)
        let chat = try await engine.chat()
        _ = try await chat.reply(to: question, options: short)
        try await chat.save(to: file)

        await expect(.io, "nowhere") {
            try await Chat(engine, contentsOf: self.folder.appendingPathComponent("nowhere"))
        }
        await expect(.io) { try await chat.save(to: file.appendingPathComponent("inside")) }
        var bytes = try Data(contentsOf: file)
        bytes[bytes.count / 2] ^= 1
        let damaged = folder.appendingPathComponent("damaged")
        try bytes.write(to: damaged)
        await expect(.malformed) { try await Chat(engine, contentsOf: damaged) }
        try bytes.prefix(bytes.count / 3).write(to: damaged)
        await expect(.malformed) { try await Chat(engine, contentsOf: damaged) }
        await expect(.malformed) { try await Chat(engine, contentsOf: model) }
        let lower = try await Engine(contentsOf: model, options: EngineOptions(precision: .exact(bits: 3), context: 512))
        await expect(.unsupported) { try await Chat(lower, contentsOf: file) }
        // The chat is unchanged.
        let count = try await chat.messages().count
        XCTAssertEqual(count, 2)
    }
}
