// Opening a model from a path and from an open file, plans, statistics, conversion.
import CDollop
import Foundation
import XCTest

@testable import Dollop

final class EngineTests: DollopTestCase {
    func testInfoTokenizerTemplateAndSampling() async throws {
        let engine = try await Engine(contentsOf: model, options: small)
        let info = try engine.info
        XCTAssertEqual(info.architecture, "qwen2moe")
        XCTAssertTrue(info.layers > 10 && info.experts > 1 && info.expertsUsed >= 1 && info.hasChatTemplate)
        XCTAssertTrue(info.activeParameters < info.parameters && info.activeBytes <= info.bytes)
        XCTAssertEqual(info.threads, 1)
        XCTAssertEqual(try JSONDecoder().decode(ModelInfo.self, from: JSONEncoder().encode(info)), info)

        let ids = try engine.tokenize("A café costs 3 €.")
        XCTAssertTrue(ids.count > 4 && ids.allSatisfy { Int($0) < info.vocab })
        XCTAssertEqual(try engine.detokenize(ids), "A café costs 3 €.")
        XCTAssertEqual(try engine.tokenize(""), [])
        XCTAssertEqual(try engine.detokenize([]), "")

        let rendered = try engine.render([Message(role: "user", content: "Hello!")])
        XCTAssertTrue(rendered.contains("Hello!") && rendered.hasSuffix("assistant\n"), rendered)
        XCTAssertNotNil(try engine.sampling.temperature)
        XCTAssertTrue(Engine.libraryVersion.contains("."))
    }

    /// Checks that an open model's cache is as large as planned, up to whole pages per layer.
    private func assertFollows(_ open: Plan, _ plan: Plan, line: UInt = #line) {
        XCTAssertTrue(open.streaming && plan.streaming, line: line)
        XCTAssertEqual(open.budget, plan.budget, line: line)
        XCTAssertEqual(open.smallestBytes, plan.smallestBytes, line: line)
        XCTAssertEqual(open.context, plan.context, line: line)
        XCTAssertTrue(open.totalBytes <= plan.totalBytes && open.totalBytes + (1 << 19) > plan.totalBytes, line: line)
    }

    func testAPlanAgreesWithTheOpenModel() async throws {
        let whole = try await Engine.plan(contentsOf: model, options: small)
        XCTAssertTrue(!whole.streaming && whole.budget == nil && whole.smallestBytes < whole.totalBytes)
        XCTAssertEqual(whole.levels.map(\.bits), whole.levels.map(\.bits).sorted())
        XCTAssertTrue(whole.levels.allSatisfy { $0.expertBytes > 0 && (0...1).contains($0.resident) })

        let options = try await streamed()
        let tight = try await Engine.plan(contentsOf: model, options: options)
        XCTAssertTrue(tight.streaming && tight.budget == options.memoryBytes)
        XCTAssertTrue(tight.totalBytes <= options.memoryBytes! && tight.expertBytes < whole.expertBytes)
        XCTAssertEqual(dollop_open_handles(), 0, "a plan loads nothing, and keeps nothing")

        let engine = try await Engine(contentsOf: model, options: options)
        assertFollows(try engine.plan, tight)
        XCTAssertEqual(try JSONDecoder().decode(Plan.self, from: JSONEncoder().encode(tight)), tight)
    }

    func testStatsCountStreaming() async throws {
        let engine = try await Engine(contentsOf: model, options: try await streamed())
        let answer = try await engine.chat().reply(to: question, options: short)
        let stats = try engine.stats
        let stream = try XCTUnwrap(stats.stream)
        XCTAssertTrue(answer.outcome.generatedTokens > 0 && stream.bytesWanted > 0 && stream.evictions > 0)
        XCTAssertEqual(stream.planesWanted.count, 5)
        XCTAssertTrue((0...1).contains(try XCTUnwrap(stats.hitRate)))
        XCTAssertEqual(try XCTUnwrap(stats.meanBits), 4, accuracy: 1e-6)
        XCTAssertNil(stats.gpu)

        let resident = try await Engine(contentsOf: model, options: small)
        XCTAssertNil(try resident.stats.stream)
    }

    func testAModelInsideAnOpenFile() async throws {
        let pack = folder.appendingPathComponent("pack")
        let bytes = try Data(contentsOf: model)
        var packed = Data(repeating: 7, count: 65536)
        packed.append(bytes)
        packed.append(Data(repeating: 9, count: 1000))
        try packed.write(to: pack)
        var options = try await streamed()

        let file = try FileHandle(forReadingFrom: pack)
        let length = UInt64(bytes.count)
        let plan = try await Engine.plan(contentsOf: file, offset: 65536, length: length, options: options)
        let engine = try await Engine(contentsOf: file, offset: 65536, length: length, options: options)
        try file.close()
        try FileManager.default.removeItem(at: pack)
        assertFollows(try engine.plan, plan)
        let answer = try await engine.chat().reply(to: question, options: short)

        options.memoryBytes = nil
        let whole = try FileHandle(forReadingFrom: model)
        let other = try await Engine(contentsOf: whole, options: options)
        try whole.close()
        let same = try await other.chat().reply(to: question, options: short)
        XCTAssertEqual(answer.text, same.text)

        let again = try FileHandle(forReadingFrom: model)
        defer { try? again.close() }
        await expect(.invalid) { try await Engine(contentsOf: again, offset: 1) }
        await expect(.malformed) { try await Engine(contentsOf: again, offset: 64) }
        await expect(.invalid, "length 0") { try await Engine(contentsOf: again, length: 0) }
    }

    func testAForeignModelIsConvertedWithProgressUntilCancelled() async throws {
        let foreign = root.appendingPathComponent("target/goldens/SmolLM2-135M-Instruct.Q4_1.gguf")
        guard FileManager.default.fileExists(atPath: foreign.path) else {
            throw XCTSkip("tests/goldens/fetch.sh fetches the model of this test")
        }
        await expect(.unsupported, "cache folder") { try await Engine(contentsOf: foreign) }
        let reports = Protected<[OpenProgress]>([])
        let options = EngineOptions(cacheFolder: folder)
        let opening = Task {
            try await Engine(contentsOf: foreign, options: options) { progress in reports { $0.append(progress) } }
        }
        try await eventually("progress") { reports { $0.count > 2 } }
        opening.cancel()
        do {
            _ = try await opening.value
            XCTFail("the conversion went on")
        } catch is CancellationError {}
        let all = reports { $0 }
        XCTAssertTrue(all.allSatisfy { !$0.stage.isEmpty && $0.done <= $0.total && $0.total > 0 })
        let left = try FileManager.default.contentsOfDirectory(atPath: folder.path).filter { $0.hasSuffix(".gguf") }
        XCTAssertEqual(left, [], "no half of a model is left")
    }

    func testACancelledTaskOpensNothing() async throws {
        let task = Task {
            withUnsafeCurrentTask { $0?.cancel() }
            return try await Engine(contentsOf: model)
        }
        do {
            _ = try await task.value
            XCTFail("opened")
        } catch is CancellationError {}
    }

    func testDevicesAreNumbered() async throws {
        let devices = try await Engine.devices()
        XCTAssertEqual(devices.map(\.index), Array(devices.indices))
        XCTAssertTrue(devices.allSatisfy { !$0.name.isEmpty && !$0.api.isEmpty })
    }
}
