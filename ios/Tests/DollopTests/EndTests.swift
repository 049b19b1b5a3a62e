// Answers that end early: cancelling, leaving the loop, closing and releasing during a generation.
import CDollop
import Foundation
import XCTest

@testable import Dollop

final class EndTests: DollopTestCase {
    func testABreakStopsTheAnswerAndFreesTheChat() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let chat = try await engine.chat()
        var (text, tokens) = ("", 0)
        for try await event in chat.send(question, options: long) {
            text += event.text ?? ""
            if case .token = event { tokens += 1 }
            if tokens == 5 { break }
        }
        // The call waits for the generating thread and does not fail.
        let messages = try await chat.messages()
        XCTAssertEqual(messages.map(\.role), ["user", "assistant"])
        XCTAssertTrue(messages[1].content.hasPrefix(text), "the generated text stays: \(messages[1].content)")
        let generated = try engine.tokenize(messages[1].content).count
        XCTAssertTrue((5...25).contains(generated), "\(generated) tokens, and not all 400")
        let next = try await chat.reply(to: "Go on.", options: short)
        XCTAssertTrue(next.outcome.generatedTokens > 0)
    }

    func testACancelledConsumerStopsTheAnswer() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let chat = try await engine.chat()
        let tokens = Protected(0)
        let consumer = Task {
            var finished = false
            for try await event in chat.send(question, options: long) {
                if case .token = event { tokens { $0 += 1 } }
                if case .done = event { finished = true }
            }
            return finished
        }
        try await eventually("tokens") { tokens { $0 >= 3 } }
        consumer.cancel()
        let finished = try await consumer.value
        XCTAssertFalse(finished, "the loop ended without an error, and without an end")
        // The loop ends after the native call, so the chat is free at once.
        let messages = try await chat.messages()
        XCTAssertTrue(try engine.tokenize(messages[1].content).count < 100)

        let reply = Task { try await chat.reply(to: "Go on.", options: long) }
        try await Task.sleep(nanoseconds: 200_000_000)
        reply.cancel()
        do {
            _ = try await reply.value
            XCTFail("the reply went on")
        } catch is CancellationError {}
    }

    func testACancelStopsALongPrefill() async throws {
        var options = small
        (options.context, options.chunk) = (4096, 256)
        let engine = try await Engine(contentsOf: model, options: options)
        let chat = try await engine.chat()
        let (prefilled, done) = (Protected(0), Protected(false))
        let consumer = Task {
            for try await event in chat.send(text(words: 3000), options: long) {
                if case .prefill(let read, _) = event { prefilled { $0 = read } }
                if case .token = event { XCTFail("the prompt was read to its end") }
            }
            done { $0 = true }
        }
        try await eventually("the first part") { prefilled { $0 > 0 } }
        consumer.cancel()
        try await consumer.value
        XCTAssertTrue(done { $0 })
        XCTAssertTrue(prefilled { $0 } < 2500)
        let answer = try await chat.reply(to: question, options: GenerateOptions(maxTokens: 1, sampling: .greedy))
        XCTAssertEqual(answer.outcome.generatedTokens, 1)
    }

    func testACancelledAnswerDeliversItsText() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let chat = try await engine.chat()
        chat.cancel()
        var (text, tokens) = ("", 0)
        var outcome: Outcome?
        for try await event in chat.send(question, options: long) {
            text += event.text ?? ""
            if case .token = event { tokens += 1 }
            if tokens == 2 { chat.cancel() }
            if case .done(let end) = event { outcome = end }
        }
        let end = try XCTUnwrap(outcome)
        XCTAssertEqual(end.stop, .cancelled)
        XCTAssertTrue((2...30).contains(end.generatedTokens))
        let messages = try await chat.messages()
        XCTAssertTrue(messages[1].content.hasPrefix(text))

        // Cancelled before anything was generated.
        let stream = chat.send("Go on.", options: long)
        chat.cancel()
        let stopped = try await collect(stream).end
        XCTAssertEqual(try XCTUnwrap(stopped).stop, .cancelled)
    }

    func testAnAnswerOutlivesItsEngineAndChat() async throws {
        var engine: Engine? = try await Engine(contentsOf: model, options: small)
        let whole = try await engine!.chat().reply(to: question, options: short)
        var chat: Chat? = try await engine!.chat()
        let stream = chat!.send(question, options: short)
        chat = nil
        engine!.close()
        engine!.close()
        await expect(.closed) { [engine] in try engine!.info }
        engine = nil
        let answer = try await collect(stream)
        XCTAssertEqual(answer.text, whole.text)
        XCTAssertEqual(try XCTUnwrap(answer.end).stop, whole.outcome.stop)
    }

    func testAChatThatIsClosedEndsItsAnswer() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let chat = try await engine.chat()
        var (tokens, outcome) = (0, Outcome?.none)
        for try await event in chat.send(question, options: long) {
            if case .token = event { tokens += 1 }
            if tokens == 3 { chat.close() }
            if case .done(let end) = event { outcome = end }
        }
        XCTAssertEqual(try XCTUnwrap(outcome).stop, .cancelled)
        XCTAssertTrue(tokens < 40)
        await expect(.closed, "the chat is closed") { try await chat.messages() }
        await expect(.closed) { try await chat.reply(to: question) }
        chat.close()
        chat.cancel()
        engine.close()
        await expect(.closed) { try await engine.chat() }
        await expect(.closed) { try await engine.trim(.normal) }
        await expect(.closed) { try engine.tokenize("a") }
    }

    /// Closes or cancels a chat at a random moment of its answer, many times. `DOLLOP_TEST_FULL` runs more rounds.
    func testClosingRacesWithGeneration() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let rounds = ProcessInfo.processInfo.environment["DOLLOP_TEST_FULL"] == nil ? 100 : 10_000
        let options = GenerateOptions(maxTokens: 6, sampling: .greedy, ignoreEos: true)
        let chats = ChatOptions(context: 64)
        var (whole, cut, closed, state) = (0, 0, 0, UInt64(11))
        for round in 0..<rounds {
            state = state &* 0x5851_f42d_4c95_7f2d &+ 0x1405_7b7e_f767_814f
            let delay = state >> 33 % 25_000
            let chat = try await engine.chat(options: chats)
            let racer = Task.detached {
                try await Task.sleep(nanoseconds: delay * 1000)
                if round % 3 == 2 { chat.cancel() } else { chat.close() }
            }
            do {
                let end = try await collect(chat.send("Hi", options: options)).end
                if try XCTUnwrap(end).stop == .cancelled { cut += 1 } else { whole += 1 }
            } catch let error as DollopError where error.status == .closed {
                closed += 1
            }
            try await racer.value
        }
        print("\(rounds) races: \(whole) whole answers, \(cut) cut short, \(closed) closed before they began")
        XCTAssertEqual(whole + cut + closed, rounds)
        XCTAssertTrue(cut > 0)
    }
}
