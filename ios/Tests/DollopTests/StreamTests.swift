// Answers as streams: their events, options, back-pressure, and concurrent answers.
import CDollop
import Foundation
import XCTest

@testable import Dollop

final class StreamTests: DollopTestCase {
    func testAnAnswerStreams() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let chat = try await engine.chat(options: ChatOptions(system: "You are brief."))
        var (text, tokens, prefilled) = ("", 0, 0)
        var outcome: Outcome?
        for try await event in chat.send(question, options: short) {
            XCTAssertNil(outcome, "the end is the last event")
            text += event.text ?? ""
            switch event {
            case .prefill(let done, let total):
                XCTAssertTrue(done <= total && tokens == 0)
                prefilled = done
            case .token(let id, _):
                XCTAssertTrue(Int(id) < 50_000)
                tokens += 1
            case .done(let end): outcome = end
            case .rest, .gpuLost: break
            }
        }
        let end = try XCTUnwrap(outcome)
        XCTAssertTrue(text.contains("Paris"), text)
        XCTAssertTrue(tokens >= end.generatedTokens && end.generatedTokens > 3)
        XCTAssertEqual(end.promptTokens - end.reusedTokens, prefilled)
        XCTAssertTrue(end.stop == .endOfTurn || end.stop == .maxTokens)
        XCTAssertTrue(try XCTUnwrap(end.tokensPerSecond) > 0)
        let messages = try await chat.messages()
        XCTAssertEqual(messages.map(\.role), ["system", "user", "assistant"])
        XCTAssertEqual(messages.map(\.content), ["You are brief.", question, text])
    }

    func testRepliesFollowOptions() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let chat = try await engine.chat(options: ChatOptions(system: "You are brief."))
        let answer = try await chat.reply(to: question, options: short)
        // All but the last message is in the cache.
        let again = try await chat.reply(to: "Are you sure?", options: short)
        XCTAssertTrue(again.outcome.reusedTokens >= answer.outcome.promptTokens)
        try await chat.reset()
        let same = try await chat.reply(to: question, options: short)
        XCTAssertEqual(same.text, answer.text)

        var options = short
        options.stop = ["Paris"]
        try await chat.reset()
        let stopped = try await chat.reply(to: question, options: options)
        XCTAssertEqual(stopped.outcome.stop, .stopText)
        XCTAssertEqual(stopped.text, answer.text.components(separatedBy: "Paris")[0])

        options = GenerateOptions(maxTokens: 3, sampling: .greedy)
        try await chat.reset()
        let three = try await chat.reply(to: question, options: options)
        XCTAssertEqual(three.outcome.stop, .maxTokens)
        XCTAssertEqual(three.outcome.generatedTokens, 3)
        XCTAssertTrue(answer.text.hasPrefix(three.text))

        // The same seed gives the same text. A token with a bias of minus infinity is never chosen.
        var hot = GenerateOptions(maxTokens: 12, sampling: Sampling(temperature: 1.5, topK: 0, topP: 1, seed: 7))
        try await chat.reset()
        let seven = try await chat.reply(to: question, options: hot)
        let sevenAgain = try await collect(chat.regenerate(options: hot)).text
        XCTAssertEqual(seven.text, sevenAgain)
        hot.sampling.seed = 8
        let eight = try await collect(chat.regenerate(options: hot)).text
        XCTAssertNotEqual(seven.text, eight)
        options = short
        let banned = try engine.tokenize(" Paris")
        options.sampling.logitBias = Dictionary(uniqueKeysWithValues: banned.map { ($0, -Float.infinity) })
        let other = try await collect(chat.regenerate(options: options)).text
        XCTAssertFalse(other.contains(" Paris"), other)

        try await chat.setMessages([Message(role: "user", content: "Hi"), Message(role: "assistant", content: "Hello")])
        let count = try await chat.messages().count
        XCTAssertEqual(count, 2)
        try await chat.setVariables(json: #"{"enable_thinking": false}"#)
        try await chat.setTime(Date())
        let info = try await chat.info()
        XCTAssertTrue(info.context == 512 && info.tokens > 0 && info.processedTokens >= info.tokens)
    }

    func testASlowConsumerPausesTheGeneration() async throws {
        let engine = try await Engine(contentsOf: model, options: try await streamed())
        let chat = try await engine.chat()
        func wanted() throws -> UInt64 { try XCTUnwrap(engine.stats.stream).planesWanted[0] }
        let layers = UInt64(try engine.info.layers * engine.info.expertsUsed)

        var (events, before) = (0, UInt64(0))
        for try await event in chat.send(question, options: long) {
            guard case .token = event else { continue }
            events += 1
            if events == 1 { before = try wanted() }
            if events == 2 {
                // The consumer is slow: generation halts while 16 events wait.
                func ahead() throws -> UInt64 { (try wanted() - before) / layers }
                try await eventually("a full queue") { try ahead() >= 12 }
                try await Task.sleep(nanoseconds: 3_000_000_000)
                let tokens = try ahead()
                XCTAssertTrue((12...20).contains(tokens), "\(tokens) tokens ahead of the consumer")
            }
            if events == 60 { break }
        }
        XCTAssertEqual(events, 60, "and went on")
    }

    func testReleasingAFinishedStreamStopsNoOther() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let chat = try await engine.chat()
        var first: AsyncThrowingStream<Event, any Error>? = chat.send(question, options: short)
        _ = try await collect(first!)
        var next = chat.send("Say more about it.", options: long).makeAsyncIterator()
        _ = try await next.next()
        first = nil
        var tokens = 0
        while tokens < 40, let event = try await next.next() {
            if case .token = event { tokens += 1 }
            if case .done(let end) = event { XCTFail("ended: \(end)") }
        }
        XCTAssertEqual(tokens, 40)
    }

    func testASecondAnswerOfAChatIsBusy() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let (chat, other) = (try await engine.chat(), try await engine.chat())
        let alone = try await other.reply(to: question, options: short)
        let stream = chat.send(question, options: short)
        await expect(.busy) { try await collect(chat.send("And of Spain?", options: short)) }
        await expect(.busy) { try await chat.reply(to: "And of Spain?") }
        await expect(.busy) { try await chat.messages() }
        await expect(.busy) { try await chat.save(to: self.folder.appendingPathComponent("chat")) }
        // Another chat of the engine is not busy.
        try await other.reset()
        async let parallel = other.reply(to: question, options: short)
        let answer = try await collect(stream)
        XCTAssertEqual(answer.text, alone.text)
        let second = try await parallel
        XCTAssertEqual(second.text, alone.text)
        // Calls that end by themselves wait for each other.
        try await withThrowingTaskGroup(of: Int.self) { group in
            for _ in 0..<20 { group.addTask { try await chat.messages().count } }
            for try await count in group { XCTAssertEqual(count, 2) }
        }
    }
}
