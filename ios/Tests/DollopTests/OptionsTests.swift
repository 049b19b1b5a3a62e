// Gate 213: each option of dollop.h that Swift passes on has its effect.
import CDollop
import Foundation
import XCTest

@testable import Dollop

final class OptionsTests: DollopTestCase {
    /// Returns the stats after an answer of an engine with streamed experts and changed options.
    private func stats(
        _ options: GenerateOptions = short, _ change: (inout EngineOptions) -> Void = { _ in }
    ) async throws -> Stats {
        var opening = small
        change(&opening)
        opening.memoryBytes = try await Engine.plan(contentsOf: model, options: opening).smallestBytes + (8 << 20)
        let engine = try await Engine(contentsOf: model, options: opening)
        _ = try await collect(Session(engine).complete("The three largest cities of France are", options: options))
        return try engine.stats
    }

    func testAnswersObeyTheirConstraint() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let chat = try await engine.chat()
        func answer(_ constraint: Constraint) async throws -> String {
            try await chat.reset()
            var options = short
            options.constraint = constraint
            return try await chat.reply(to: "Name a color.", options: options).text
        }
        let schema = """
            {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"],
             "additionalProperties": false}
            """
        let json = try await answer(.jsonSchema(schema))
        let color = try JSONDecoder().decode([String: String].self, from: Data(json.utf8))
        XCTAssertTrue(["red", "blue"].contains(color["color"]), json)
        let hex = try await answer(.regex("#[0-9a-f]{6}"))
        XCTAssertTrue(hex.count == 7 && hex.hasPrefix("#"), hex)
        let blue = try await answer(.grammar("start: \"It is \" color\ncolor: \"blue\"\n"))
        XCTAssertEqual(blue, "It is blue")
        for wrong in [Constraint.jsonSchema("{\"type\": "), .regex("a(b"), .grammar("no")] {
            await expect(.invalid) { try await answer(wrong) }
        }
    }

    func testAnAnswerGoesOnAfterItsEndIfEndsAreIgnored() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let chat = try await engine.chat(options: ChatOptions(system: "You are brief."))
        // The likeliest token is now always the one that ends a turn.
        var options = GenerateOptions(maxTokens: 4, sampling: .greedy)
        options.sampling.logitBias = [try XCTUnwrap(engine.info.eos): 1000]
        let reply = try await chat.reply(to: question, options: options)
        XCTAssertEqual(reply.outcome.stop, .endOfTurn)
        options.ignoreEos = true
        try await chat.reset()
        let longer = try await chat.reply(to: question, options: options)
        XCTAssertEqual(longer.outcome.stop, .maxTokens)
        XCTAssertEqual(longer.outcome.generatedTokens, 4)
    }

    func testTheChainAndTheBreakersOfDRYDecide() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let session = try await Session(engine)
        func first(_ sampling: Sampling, _ prompt: String) async throws -> String {
            try await collect(session.complete(prompt, options: GenerateOptions(maxTokens: 4, sampling: sampling))).text
        }
        let start = "The capital of France is"
        // Without the penalties of the model's own chain.
        var cold = Sampling.greedy
        cold.chain = "top_k;temperature"
        let greedily = try await first(cold, start)
        var hot = Sampling(temperature: 50, topK: 1, seed: 1)
        hot.chain = "top_k;temperature"
        let same = try await first(hot, start)
        XCTAssertEqual(same, greedily)
        hot.chain = "temperature"
        let other = try await first(hot, start)
        XCTAssertNotEqual(other, greedily, "top_k is not in the chain")

        let list = "red green blue red green blue red green blue red green"
        // The list goes on with a word that has a large bias, which the penalty of a repetition exceeds.
        var biased = Sampling.greedy
        biased.logitBias = [try engine.tokenize(" blue")[0]: 50]
        let repeated = try await first(biased, list)
        XCTAssertTrue(repeated.hasPrefix(" blue"), repeated)
        var dry = biased
        dry.dry = Sampling.DRY(multiplier: 100, base: 1.75, allowedLength: 1, lastN: 64, breakers: [])
        let stopped = try await first(dry, list)
        XCTAssertFalse(stopped.hasPrefix(" blue"), "DRY stops the repetition")
        dry.dry!.breakers = [" green"]
        let goesOn = try await first(dry, list)
        XCTAssertTrue(goesOn.hasPrefix(" blue"), "a breaker ends the match: \(goesOn)")
    }

    func testTheChunkIsThatOfTheOptions() async throws {
        var options = small
        options.chunk = 64
        let engine = try await Engine(contentsOf: model, options: options)
        XCTAssertEqual(try engine.plan.chunk, 64)
        let end = try await collect(Session(engine, chunk: 32).complete(text(words: 200), options: short)).end
        XCTAssertNotNil(end)
        await expect(.invalid, "chunk -1") { try await Session(engine, chunk: -1) }
        await expect(.invalid, "chunk -1") { try await engine.chat(options: ChatOptions(chunk: -1)) }
    }

    func testStreamingFollowsItsOptions() async throws {
        let plain = try await stats()
        let stream = try XCTUnwrap(plain.stream)
        XCTAssertEqual([plain.dropped, plain.redirected, stream.bytesAhead], [0, 0, 0])
        let ahead = try await stats { $0.lookahead = 8 }
        XCTAssertTrue(ahead.stream!.bytesAhead > 0)
        // Exact precision excludes options that change results.
        let adaptive = EngineOptions.Precision.adaptive()
        let skipping = try await stats { ($0.skipCold, $0.precision) = (0.9, adaptive) }
        XCTAssertTrue(skipping.dropped > 0)
        let leaning = try await stats { ($0.cachePrior, $0.precision) = (0.9, adaptive) }
        XCTAssertTrue(leaning.redirected > 0)
        let fewer = try await stats { ($0.expertsUsed, $0.precision) = (1, adaptive) }
        XCTAssertTrue(fewer.stream!.planesWanted[0] < stream.planesWanted[0])
    }

    /// The target is out of reach, so the precision sinks below that of an answer without a target.
    func testATargetSpeedLowersThePrecision() async throws {
        let adaptive = EngineOptions.Precision.adaptive(quality: 8, floor: 2)
        var options = GenerateOptions(maxTokens: 64, sampling: .greedy, ignoreEos: true)
        let free = try await stats(options) { $0.precision = adaptive }
        options.targetTokensPerSecond = 1e5
        let fast = try await stats(options) { $0.precision = adaptive }
        XCTAssertTrue(fast.meanBits! < free.meanBits!, "\(fast.meanBits!) and \(free.meanBits!) bits")
    }
}
